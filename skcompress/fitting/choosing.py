"""The best of several outcomes of one fit, as the outputs of the network say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..protocols import Allocation
from .comparing import Comparison
from .fitting import Fitting, Outcome
from .importance import TRIED_ON, importances
from .steps import Steps

Chosen = tuple[Outcome, float | None, dict[str, float]]


def best_outcome(
    fitting: Fitting,
    steps: Steps,
    rank: Any,
    allocation: Allocation,
    *,
    sensitivity: Any,
    sequential: bool,
    dense: bool,
    recalibrate: Any,
    measure: bool,
    verbose: bool | int,
) -> Chosen:
    """Give what loses least of the network's outputs, how much that is, and of each layer's.

    The latter are None and empty without data. For the others see :class:`LowRankCompressor` and
    `Fitting.outcome`.
    """
    given = fitting.calibration
    if given is None:
        with steps("allocate"):
            return fitting.outcome(rank, allocation), None, {}

    def closest(fitting: Fitting, tried: Sequence[Mapping[str, float]], **settings: Any) -> Chosen:
        needed = sensitivity == "auto"
        comparison = Comparison(fitting, steps=steps, needed=needed, **settings)
        for importance in tried:
            with steps("reconstruct" if sequential else "allocate"):
                outcome = fitting.outcome(
                    rank,
                    allocation,
                    importance,
                    sequential=sequential,
                    dense=dense,
                    verbose=verbose,
                )
            comparison.add(outcome)
        return comparison.best()

    tried: list[Mapping[str, float]] = list(importances(fitting.sites, sensitivity))
    part = given.part(TRIED_ON) if len(tried) > 1 else given
    if part is not given:
        on_part = replace(fitting, calibration=part)
        outcome, *_ = closest(on_part, tried, recalibrate=False, measure=False)
        tried = [outcome.importance]
    return closest(fitting, tried, recalibrate=recalibrate, measure=measure)
