"""What a search can ask of a model: its score, its size, its work and its time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sklearn.utils._param_validation import InvalidParameterError
from torch import nn

from ..errors import MissingDataError, UnknownNameError
from ..metrics import count_bytes, count_flops, count_parameters, measure_latency
from ..network.batches import Batch, batches
from .scoring import Scorer

# Which way is better; what is not maximised is minimised.
DIRECTIONS = {
    "score": "maximize",
    "n_parameters": "minimize",
    "flops": "minimize",
    "bytes": "minimize",
    "latency": "minimize",
}


@dataclass(frozen=True)
class Measurement:
    """What was found out about one model.

    score : as `scoring` gives it; None where nobody asked
    flops, latency : of one forward, the latter in seconds; None without an input
    bytes : of parameters and buffers
    """

    score: float | None
    n_parameters: int
    flops: int | None
    bytes: int
    latency: float | None

    def losses(self, objectives: Sequence[str]) -> list[float]:
        """Give the objectives such that less is better."""
        return [sign(name) * getattr(self, name) for name in objectives]


def sign(objective: str) -> int:
    """-1 for what is maximised, 1 for what is minimised."""
    return -1 if DIRECTIONS[objective] == "maximize" else 1


def checked_objectives(owner: str, objectives: Any) -> tuple[str, ...]:
    """Give the objectives as a tuple, or refuse what is unknown, twice there, or nothing.

    >>> checked_objectives("Search", "score")
    ('score',)
    """
    names = (objectives,) if isinstance(objectives, str) else tuple(objectives)
    for name in names:
        if name not in DIRECTIONS:
            raise UnknownNameError("objective", str(name), list(DIRECTIONS))
    if not names or len(set(names)) < len(names):
        raise InvalidParameterError(
            f"The 'objectives' parameter of {owner} must be one or more different names of "
            f"{', '.join(DIRECTIONS)}. Got {objectives!r} instead."
        )
    return names


@dataclass(frozen=True)
class Meter:
    """Measures models, all in the same way.

    scorer : of a model in eval mode and a trial; None where no score is asked for
    example : arguments of one forward; None where there are no inputs
    times : whether latency decides something, and is thus measured for longer, and alone
    """

    scorer: Scorer | None
    example: Batch | None
    times: bool

    def size(self, model: nn.Module) -> dict[str, Any]:
        """Count what a model stores and computes."""
        flops = None
        if self.example is not None:
            flops = count_flops(model, *self.example.args, **self.example.kwargs)
        return {
            "n_parameters": count_parameters(model),
            "flops": flops,
            "bytes": count_bytes(model),
        }

    def score(self, model: nn.Module, trial: Any) -> float | None:
        """Score a model in eval mode."""
        return None if self.scorer is None else self.scorer(model, trial)

    def latency(self, model: nn.Module) -> float | None:
        """Measure seconds of one forward, where there is an input."""
        if self.example is None:
            return None
        args, kwargs = self.example.args, self.example.kwargs
        return measure_latency(model, args, kwargs, min_run_time=0.2 if self.times else 0.02)


def example_of(
    owner: str, wanted: Collection[str], sources: Iterable[object], model: nn.Module
) -> Batch | None:
    """Give what FLOPs and latency are measured with: the first input there is.

    wanted : objectives, and what constraints are about
    sources : data, any of which may be None: of a tensor or an array its first row, of
        anything else its first batch
    """
    for data in sources:
        if data is not None:
            return next(iter(batches(owner, data, model, batch_size=1)))
    for name in ("flops", "latency"):
        if name in wanted:
            raise MissingDataError(owner, f"objective {name!r}")
    return None
