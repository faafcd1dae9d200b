"""From finished trials to the front, and from the front to one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState
from sklearn.utils._param_validation import InvalidParameterError

from ..errors import FailedTrialsError, UnsatisfiedConstraintError
from ..protocols import Objective
from .constraints import Constraint
from .evaluation import row_of
from .measuring import Measurement, Meter, loss
from .pareto import knee, nondominated
from .studies import is_finished
from .trials import Row, TrialTable


def completed_rows(study: optuna.Study, meter: Meter, cause: Exception | None) -> tuple[Row, ...]:
    """Give a row for each completed trial.

    cause : the first error of this process, where there was one
    """
    trials = study.get_trials(deepcopy=False)
    rows = tuple(row_of(trial, meter) for trial in trials if trial.state == TrialState.COMPLETE)
    if not rows:
        finished = [trial for trial in trials if is_finished(trial)]
        errors = [t.user_attrs["error"] for t in finished if "error" in t.user_attrs]
        first = errors[0] if errors else "being pruned by scoring"
        raise FailedTrialsError(len(finished), first) from cause
    return rows


def front_of(
    rows: Sequence[Row],
    objectives: Mapping[str, Objective],
    constraints: Sequence[Constraint],
    dense: Measurement,
) -> tuple[Row, ...]:
    """Give the rows that meet the constraints and that no other of these beats, in order."""
    feasible = [row for row in rows if row.feasible]
    if not feasible:
        nearest = min(rows, key=lambda row: sum(max(0.0, value) for value in row.excess))
        missed = [
            constraint.describe(nearest.found, dense)
            for constraint, value in zip(constraints, nearest.excess, strict=True)
            if value > 0
        ]
        raise UnsatisfiedConstraintError(nearest.to_dict(), missed, len(rows))
    losses = _losses(feasible, objectives)
    kept = np.flatnonzero(nondominated(losses))
    return tuple(feasible[i] for i in kept[np.argsort(losses[kept, 0], kind="stable")])


def _losses(rows: Sequence[Row], objectives: Mapping[str, Objective]) -> np.ndarray:
    """Give objectives as (rows, objectives), such that less is better."""
    return np.array([[loss(row.found, *pair) for pair in objectives.items()] for row in rows])


def chosen(front: TrialTable, objectives: Mapping[str, Objective], refit: Any) -> Row:
    """Give the row that `refit` asks for, of a front with the best by the first objective first."""
    if refit == "best":
        return front[0]
    if refit == "knee":
        return front[knee(_losses(front, objectives))]
    index: Any = refit(front)
    if not (isinstance(index, Integral) and int(index) in range(len(front))):
        raise InvalidParameterError(
            f"The 'refit' parameter of CompressionSearch must give an index of a front of "
            f"{len(front)} trials, from 0 to {len(front) - 1}. Got {index!r} instead."
        )
    return front[int(index)]
