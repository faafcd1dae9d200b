"""What parameter constraints cannot say: what belongs together, and what needs data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np
import torch
from sklearn.utils._param_validation import (
    Interval,
    InvalidParameterError,
    RealNotInt,
    StrOptions,
    make_constraint,
)

from .. import registry
from ..errors import (
    AllocationKindError,
    MissingDataError,
    NoLayerError,
    PatternTypeError,
)
from ..fitting.choices import why_unsupported
from ..fitting.offers import WeightOffers
from ..network.weights import Site
from ..protocols import Allocation, Cost, Decomposition

T = TypeVar("T")


class _Share(Interval):
    """Any real number in (0, 1], a `Fraction` among them, which scikit-learn's cannot ask for."""

    def is_satisfied_by(self, val: Any) -> bool:
        return isinstance(val, Real) and not isinstance(val, Integral) and 0 < float(val) <= 1


RANKS: list[Any] = [
    _Share(RealNotInt, 0, 1, closed="right"),
    Interval(Integral, 1, None, closed="left"),
    StrOptions({"auto"}),
]

# Of parameters that name layers.
PATTERNS: list[Any] = [None, str, type, list, tuple, set]

_NEED_DATA: tuple[tuple[str, Any], ...] = (
    ("metric", "activations"),
    ("metric", "fisher"),
    ("reconstruction", "sequential"),
    ("refit_dense", True),
    ("recalibrate_norm", True),
    ("fold_norm", True),
)


def check_rank(owner: str, rank: Any) -> None:
    """Refuse a bool, and what a dict may not hold."""
    if isinstance(rank, dict):
        for pattern in rank:
            if not isinstance(pattern, str | type):
                raise PatternTypeError("rank", pattern)
    allowed = [make_constraint(constraint) for constraint in RANKS]
    values = list(rank.values()) if isinstance(rank, dict) else [rank]
    if not values or any(
        isinstance(value, bool) or not any(c.is_satisfied_by(value) for c in allowed)
        for value in values
    ):
        raise InvalidParameterError(
            f"The 'rank' parameter of {owner} must be a float in the range (0.0, 1.0], an int in "
            "the range [1, inf), 'auto', or a non-empty dict of name pattern to these. "
            f"Got {rank!r} instead."
        )


def check_device(owner: str, device: Any) -> None:
    """Refuse the name of a device that this torch does not know, or does not find."""
    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as cause:
        words = str(cause).strip().splitlines()[0]
        raise InvalidParameterError(
            f"The 'device' parameter of {owner} must be None or a device that torch can use here, "
            f"such as 'cpu' or 'cuda'. Got {device!r} instead: {words}"
        ) from cause


def check_jobs(owner: str, n_jobs: int | None) -> None:
    """Refuse no jobs at all, which joblib has no meaning for."""
    if n_jobs == 0:
        raise InvalidParameterError(
            f"The 'n_jobs' parameter of {owner} must be None, a positive int, or a negative one "
            "that counts from the number of processors. Got 0 instead."
        )


def computing(method: Callable[..., T]) -> Callable[..., T]:
    """Run a method without gradients, and as if the caller had set no mode of torch.

    Autocast would compute in half precision, and inference mode would make parameters that nobody
    can train.
    """

    @wraps(method)
    def plainly(*args: Any, **kwargs: Any) -> T:
        with (
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            torch.inference_mode(False),
            torch.no_grad(),
        ):
            return method(*args, **kwargs)

    return plainly


def uses_data(compressor: Any, cost: Cost, data: object) -> bool:
    """Whether data takes part; refuses settings that need it where there is none.

    Under the metric of the weights it does not, but for the shapes of its first batch, which a
    budget of FLOPs needs.
    """
    owner = type(compressor).__name__
    if data is None and cost.needs_inputs:
        raise MissingDataError(owner, f"cost={compressor.cost!r}")
    used = data is not None and compressor.metric != "weights"
    if not used:
        for setting, value in _NEED_DATA:
            # Not by ==, to which 1 is True.
            if type(given := getattr(compressor, setting)) is type(value) and given == value:
                raise MissingDataError(owner, f"{setting}={value!r}")
        if compressor.sensitivity:
            raise MissingDataError(owner, f"sensitivity={compressor.sensitivity!r}")
    return used


def seeded(plugin: Any, random_state: np.random.RandomState) -> Any:
    """Give a plugin that draws random numbers a seed, where it was given none."""
    if plugin.get_params().get("random_state", 0) is None:
        plugin.set_params(random_state=int(random_state.randint(2**31 - 1)))
    return plugin


def require_support(
    owner: str,
    sites: Sequence[Site],
    offers: Sequence[WeightOffers],
    decompositions: Sequence[Decomposition],
) -> None:
    """Refuse a model of which no weight can be cut up by any of the decompositions."""
    if not any(found.offers for found in offers):
        reasons = [
            (site.name, found.reason or why_unsupported(site.slot.shape[1:], decompositions))
            for site, found in zip(sites, offers, strict=True)
        ]
        raise NoLayerError(owner, reasons)


def rank_allocation(owner: str, given: Any) -> Allocation:
    """Make the allocation of a name, or take the one given; refuse those of zeros."""
    return allocation_of(owner, given, Allocation, "ranks")  # type: ignore[no-any-return]


def allocation_of(owner: str, given: Any, kind: type, divided: str) -> Any:
    """Make an allocation of one of the two kinds.

    divided : what allocations of this kind divide
    """
    allocation = registry.make("allocations", given)
    if not isinstance(allocation, kind):
        names = registry.names("allocations")
        known = [n for n in names if issubclass(registry.resolve("allocations", n), kind)]
        raise AllocationKindError(owner, given, divided, known)
    return allocation
