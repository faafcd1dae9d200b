"""What the settings of a search may be."""

from __future__ import annotations

from collections.abc import Collection
from numbers import Integral, Real
from typing import Any

from optuna.samplers import BaseSampler
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    InvalidParameterError,
    StrOptions,
)

from .studies import SAMPLERS

# What scikit-learn checks by itself, by parameter.
RULES: dict[str, Any] = {
    "objectives": [str, list, tuple],
    "scoring": [None, str, callable],
    "n_trials": [None, Interval(Integral, 1, None, closed="left")],
    "timeout": [None, Interval(Real, 0, None, closed="neither")],
    "sampler": [None, StrOptions(set(SAMPLERS)), BaseSampler],
    "pruner": [None, HasMethods("prune")],
    "study_name": [None, str],
    "n_jobs": [
        None,
        Interval(Integral, 1, None, closed="left"),
        Interval(Integral, None, -1, closed="right"),
    ],
    "random_state": ["random_state"],
    "refit": [StrOptions({"best", "knee"}), callable],
    "constraints": [None, str, list, tuple],
    "cache_memory": [Interval(Real, 0, None, closed="left")],
    "verbose": ["verbose"],
}


def check_together(owner: str, search: Any, wanted: Collection[str]) -> None:
    """Refuse settings that leave each other without sense.

    wanted : objectives, and what constraints are about
    """
    if search.n_trials is None and search.timeout is None:
        raise InvalidParameterError(
            f"The 'n_trials' parameter of {owner} must be an int where there is no timeout: "
            "the search would never end. Got None instead."
        )
    if search.scoring is None and "score" in wanted:
        raise InvalidParameterError(
            f"The 'scoring' parameter of {owner} must be a callable or a name, since the "
            "score is an objective or in a constraint. Got None instead."
        )
