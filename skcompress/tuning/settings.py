"""What the settings of a search may be."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from optuna.samplers import BaseSampler
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    StrOptions,
)

from .studies import SAMPLERS

# What scikit-learn checks by itself, by parameter.
RULES: dict[str, Any] = {
    "objectives": [str, list, tuple, HasMethods("measure")],
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
