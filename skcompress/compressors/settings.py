"""The settings that all low-rank compressors have in common, declared once."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

from ..protocols import Allocation
from ..spaces import FloatRange, Options, Plugins, SearchSpace
from .checks import PATTERNS, RANKS
from .fitted import FittedCompressor

SETTINGS = """
    allocation : str or Allocation, default="global"
        How a float `rank` is divided over the layers: ``"global"``, ``"uniform"``,
        ``"energy"``, ``"auto"`` (which ignores `rank`), or a plugin.
    cost : str or Cost, default="parameters"
        What a float `rank` is a fraction of: ``"parameters"``, ``"bytes"``, ``"flops"`` or a
        plugin. ``"flops"``: of the floating-point operations of one forward of the first batch of
        the data, as `count_flops` counts them. The result never has more parameters either.
        Layers whose factors save no FLOPs stay dense: recurrent ones, experts, embeddings that
        are not tied to an output head.
    pivot : bool, default=False
        Store a factor without kernel up to the rows (or columns) that an identity matrix has:
        r^2 numbers fewer at rank r, so a float `rank` buys larger ranks, and an int the same
        weights. Costs a copy of the layer's outputs (or inputs) when it runs. Embeddings,
        experts and schemes without such a factor ("spatial") are stored as ever.
    metric : {"auto", "weights", "activations", "fisher"}, default="auto"
        What "close" means. ``"weights"``: the Frobenius norm. ``"activations"``: the mean
        squared error of the layer's outputs on the data, as a batch normalisation behind it
        scales them. ``"fisher"``: that of the network's outputs, to second order (K-FAC), by
        one backward pass over the data with labels that the model draws itself. ``"auto"``:
        activations where data is given.
    reconstruction : {"auto", "independent", "sequential"}, default="auto"
        With data: every layer by itself, or layer after layer in order of execution, each
        fitted to what the original network gave from what the already compressed one is
        given; where that is added to something, as at the end of a residual block, to the
        original's sum. ``"auto"``: sequential. Ranks are chosen before, from each layer by itself,
        and so are the errors that the report predicts. Memory: the batches, and what two
        forwards hold at one layer, for all batches at once.
    sensitivity : float or "auto", default=0
        With data and ``allocation="global"``: the relative error of a layer counts as much as
        its K-FAC energy to this power, which is how much the network's outputs react to it
        (one backward pass). ``"auto"``: does everything for 0, 0.25, 0.5 and 1, and keeps what
        changes the outputs least on the data; the time is about four times as long. Where
        there are twice 1024 samples or more, a part of the batches decides, of 1024 samples at
        least, and all of them serve what comes of it.
    refit_dense : bool, default=False
        With the sequential reconstruction: fit the weights that stay dense as well.
    recalibrate_norm : bool or "auto", default="auto"
        With data: estimate mean and variance of batch normalisations anew, from what the
        compressed network gives them. ``"auto"``: where there are 64 samples or more, and the
        outputs come closer by it.
    fold_norm : bool, default=False
        With data: multiply batch normalisations into the layers whose outputs only they read.
    measure : bool, default=True
        With data: run it through the original and the compressed network, to report how far the
        outputs are apart, of the networks and of each layer. ``False`` saves the forwards on
        which no choice depends: most of the time of a second fit, see `warm_start`. All of them
        where neither `recalibrate_norm` nor `sensitivity` is ``"auto"``.
    class_weight : dict, "balanced" or None, default=None
        How much samples count by their labels, as scikit-learn has it; for data with labels.
    calibration_memory : float, default=2 GiB
        Bytes for the statistics of one pass over the data. With less there are more passes.
    max_positions : int, "auto" or None, default="auto"
        How many positions of one call of a layer (pixels of all images, tokens of all
        sequences) are used at most, drawn with `random_state`; None for all. ``"auto"``: 2048, or
        eight times as many as the weight has inputs where these are more; all of long kernels along
        one axis. Half the time of a convolutional network, at no loss seen.
    layers, exclude : name, glob pattern, module type, or several of these
        What to keep to (None: everything) and what to leave alone. A container's name
        stands for all that is inside it.
    device : str or torch.device, default=None
        Where to compute; None for where each weight is. The result lies where the model
        does.
    random_state : int, RandomState or None
        Seeds decompositions that draw random numbers (SVD and Tucker draw none), positions
        and the labels of ``"fisher"``; the latter two are the same every time with None.
    n_jobs : int or None
        Layers factorised at a time, through joblib: `joblib.parallel_config` chooses the
        backend.
    warm_start : bool, default=False
        Keep factorisations and statistics, up to 2 GiB, so that a second `fit` on unchanged
        weights and data costs no SVD whatever `rank` and `allocation` it has; the sequential
        reconstruction is done anew. `fitting.memo.share` does the same for several estimators,
        and says what is unchanged.
    verbose : bool or int
        Show a progress bar over layers.

    Attributes
    ----------
    plan_ : Plan, what happens to each weight; `to_dict` makes it JSON-able
    ranks_ : dict of weight name -> rank, for those that are compressed
    spectra_ : dict of weight name -> singular values, descending, of the unfolding that
        was chosen; (groups, k) for grouped layers
    report_ : Report, prints as a table; with data also what was measured on it
    fitted_ : Fitted, everything that was learnt, which `transform` applies
    n_parameters_in_, n_parameters_out_ : int
    n_flops_in_, n_flops_out_ : int, of one forward of the first batch; with cost="flops"
""".strip()


@dataclass(eq=False, repr=False)
class FactorizingSettings(FittedCompressor):
    """Parameters of low-rank compressors; `SETTINGS` says what they mean.

    Where a class docstring has a line ``{settings}``, they are written there.
    """

    _: KW_ONLY
    allocation: Any = "global"
    cost: Any = "parameters"
    pivot: bool = False
    metric: str = "auto"
    reconstruction: str = "auto"
    sensitivity: Any = 0.0
    refit_dense: bool = False
    recalibrate_norm: Any = "auto"
    fold_norm: bool = False
    measure: bool = True
    class_weight: Any = None
    calibration_memory: float = 2**31
    max_positions: Any = "auto"
    layers: Any = None
    exclude: Any = ()
    device: Any = None
    random_state: Any = None
    n_jobs: int | None = None
    warm_start: bool = False
    verbose: bool | int = False

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "rank": [*RANKS, dict],
        "allocation": [str, HasMethods("allocate"), HasMethods("divide")],
        "cost": [str, HasMethods("of_stages")],
        "metric": [StrOptions({"auto", "weights", "activations", "fisher"})],
        "pivot": ["boolean"],
        "reconstruction": [StrOptions({"auto", "independent", "sequential"})],
        "sensitivity": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
        "refit_dense": ["boolean"],
        "recalibrate_norm": ["boolean", StrOptions({"auto"})],
        "fold_norm": ["boolean"],
        "measure": ["boolean"],
        "class_weight": [None, dict, StrOptions({"balanced"})],
        "calibration_memory": [Interval(Real, 0, None, closed="neither")],
        "max_positions": [None, StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "layers": PATTERNS,
        "exclude": PATTERNS,
        "device": [None, str, torch.device],
        "random_state": ["random_state"],
        "n_jobs": [None, Integral],
        "warm_start": ["boolean"],
        "verbose": ["verbose"],
    }
    search_space: ClassVar[SearchSpace] = {
        "rank": FloatRange(0.1, 0.9),
        # To "energy" the rank is a fraction of something else, and "auto" has no use for it.
        "allocation": Plugins("allocations", leave_out=("auto", "energy"), protocol=Allocation),
        "pivot": Options((False, True)),
        "metric": Options(("activations", "fisher"), needs_data=True),
        "reconstruction": Options(("independent", "sequential"), needs_data=True),
        "sensitivity": FloatRange(0.0, 1.0, needs_data=True),
        "refit_dense": Options((False, True), needs_data=True),
        "fold_norm": Options((False, True), needs_data=True),
    }

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__doc__ = (cls.__doc__ or "").replace("{settings}", SETTINGS)
