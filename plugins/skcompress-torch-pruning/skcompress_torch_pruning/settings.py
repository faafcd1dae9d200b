"""The parameters of a pruner of channels, declared once."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

from skcompress.building import PATTERNS
from skcompress.protocols import Compressor
from skcompress.spaces import FloatRange, Options, Plugins, SearchSpace


@dataclass(eq=False, repr=False)
class ChannelSettings(Compressor):
    """Parameters of :class:`ChannelPruner`, which says what they mean."""

    ratio: float = 0.5
    criterion: Any = "merge"
    _: KW_ONLY
    cost: str = "parameters"
    allocation: str = "global"
    min_kept: float = 0.1
    round_to: int | None = None
    refit: bool | str = "auto"
    recalibrate_norm: bool | str = "auto"
    class_weight: Any = None
    num_heads: Any = None
    layers: Any = None
    exclude: Any = ()
    calibration_memory: float = 2**31
    max_positions: int | None = None
    random_state: Any = None
    verbose: bool | int = False

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "ratio": [Interval(Real, 0, 1, closed="left")],
        "criterion": [str, HasMethods("scores"), callable],
        "cost": [StrOptions({"parameters", "flops", "channels"})],
        "allocation": [StrOptions({"global", "uniform"})],
        "min_kept": [
            Interval(Real, 0, 1, closed="neither"), Interval(Integral, 1, None, closed="left"),
        ],
        "round_to": [None, Interval(Integral, 1, None, closed="left")],
        "refit": ["boolean", StrOptions({"auto", "all"})],
        "recalibrate_norm": ["boolean", StrOptions({"auto"})],
        "class_weight": [None, dict, StrOptions({"balanced"})],
        "num_heads": [None, dict],
        "layers": PATTERNS,
        "exclude": PATTERNS,
        "calibration_memory": [Interval(Real, 0, None, closed="neither")],
        "max_positions": [None, Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }  # fmt: skip
    search_space: ClassVar[SearchSpace] = {
        "ratio": FloatRange(0.1, 0.8),
        "criterion": Plugins("channel_criteria"),
        "allocation": Options(("global", "uniform")),
    }
