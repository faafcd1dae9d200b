"""Opening a study: a new one, or one that is to go on as it began."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from ..errors import StorageError, StudyMismatchError
from ..protocols import Objective
from .storage import shown

SAMPLERS = {"tpe": TPESampler, "nsgaii": NSGAIISampler, "random": RandomSampler}
# User attributes: of a study, how it was begun; of a trial in Optuna 4, see `set_excess`.
_BEGUN = "skcompress"
_EXCESS = "constraints"
_OWN_CONSTRAINTS = hasattr(optuna.trial.Trial, "set_constraint")


def open_study(
    objectives: Mapping[str, Objective],
    *,
    sampler: str | BaseSampler,
    pruner: Any,
    storage: BaseStorage,
    name: str | None,
    seed: int | None,
    constrained: bool,
) -> optuna.Study:
    """Create a study for these objectives, or load the one of this name.

    sampler : of `SAMPLERS`, or an instance; seed : of the former. What was searched already
        enters it, so that a resumed study does not draw once more what it began with.
    constrained : whether trials will be told by `set_excess`
    """
    directions: list[Any] = [objective.direction for objective in objectives.values()]
    try:
        study = optuna.create_study(
            storage=storage, study_name=name, directions=directions, pruner=pruner,
            sampler=RandomSampler() if isinstance(sampler, str) else sampler, load_if_exists=True,
        )  # fmt: skip
        n_trials = len(study.get_trials(deepcopy=False))
    except Exception as cause:
        raise StorageError(shown(storage), f"{type(cause).__name__}: {cause}") from cause
    found = [direction.name.lower() for direction in study.directions]
    if found != directions:
        stored = study.metric_names or f"of directions {found}"
        raise StudyMismatchError(study.study_name, "objectives", list(objectives), stored)
    if isinstance(sampler, str):
        study.sampler = _sampler(sampler, seed, n_trials, constrained)
    return study


def _sampler(name: str, seed: int | None, n_trials: int, constrained: bool) -> BaseSampler:
    if seed is not None:
        seed = int(np.random.SeedSequence([seed, n_trials]).generate_state(1)[0])
    settings: dict[str, Any] = {"seed": seed}
    if constrained and not _OWN_CONSTRAINTS and name != "random":
        settings["constraints_func"] = excess_of
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return SAMPLERS[name](**settings)


def begin(study: optuna.Study, objectives: Iterable[str], settings: Mapping[str, Any]) -> None:
    """Note in a new study how it was begun; compare with that in one that goes on.

    settings : JSON-able, by the words in which a difference is told
    """
    begun = study.user_attrs.get(_BEGUN)
    if begun is None and study.get_trials(deepcopy=False):
        # Unless another process has just begun it, which notes this before its first trial.
        begun = study.user_attrs.get(_BEGUN)
        if begun is None:
            raise StudyMismatchError(
                study.study_name, "trials", "none of them", "that are not of a CompressionSearch"
            )
    if begun is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(list(objectives))
        study.set_user_attr(_BEGUN, dict(settings))
        return
    for setting, value in settings.items():
        if begun.get(setting) != value:
            raise StudyMismatchError(study.study_name, setting, value, begun.get(setting))


def set_excess(trial: Any, excess: Mapping[str, float]) -> None:
    """Tell by how much each constraint is missed, in the way that this Optuna has for it."""
    if _OWN_CONSTRAINTS:
        for text, value in excess.items():
            trial.set_constraint(text, value)
    else:
        trial.set_user_attr(_EXCESS, list(excess.values()))


def excess_of(trial: FrozenTrial) -> tuple[float, ...]:
    """Read back what `set_excess` told."""
    if _OWN_CONSTRAINTS:
        return tuple(trial.constraints.values())
    return tuple(trial.user_attrs.get(_EXCESS, ()))


def is_finished(trial: FrozenTrial) -> bool:
    """Whether a trial came to its end, be it bad. One that was killed on the way did not."""
    if trial.state == TrialState.FAIL:
        return "error" in trial.user_attrs
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
