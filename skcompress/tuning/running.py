"""Carrying out the trials of a study."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Collection

import joblib
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import NopPruner
from optuna.trial import FixedTrial, FrozenTrial, TrialState
from sklearn.exceptions import FitFailedWarning
from torch import nn

from ..errors import DenseScoreError
from .evaluation import Evaluation
from .gate import Gate
from .measuring import Measurement, Meter, source_of
from .progress import progress
from .scoring import Scorer
from .studies import is_finished

_DENSE = "dense"


def dense_measurement(
    study: optuna.Study, meter: Meter, gate: Gate, make: Callable[[], nn.Module]
) -> Measurement:
    """Measure the uncompressed network, once in a study: all compare with the same.

    make : gives it; it may be changed
    """
    known = study.user_attrs.get(_DENSE)
    if known is None:
        dense, found = make().eval(), {}
        with gate.alone():
            for name in [*meter.names(timed=False), *meter.names(timed=True)]:
                try:
                    found[name] = meter.measure(name, dense, FixedTrial({}))
                except Exception as cause:
                    raise DenseScoreError(source_of(name), cause) from cause
        study.set_user_attr(_DENSE, found)
        # Another process may have written in between: what is there now holds for both.
        known = study.user_attrs[_DENSE]
    return meter.measurement(known)


def prunes_by_score(
    study: optuna.Study, objectives: Collection[str], scorer: Scorer | None
) -> bool:
    """Whether the study's pruner wants scores from amid a trial, and nobody else reports some.

    Optuna prunes studies of one objective, of whose values it takes the reports to be.
    """
    if tuple(objectives) != ("score",) or scorer is None or scorer.reports:
        return False
    return not isinstance(study.pruner, NopPruner)


def run(
    study: optuna.Study,
    evaluation: Evaluation,
    *,
    n_trials: int | None,
    timeout: float | None,
    n_jobs: int | None,
    verbose: bool | int,
    grace: float | None = None,
) -> None:
    """Go on until the study has `n_trials` finished trials, or until `timeout` seconds from now.

    grace : seconds after which trials of killed workers are known as such. In the end those
        that still run are waited for so long, and what was killed is done again.

    What goes wrong in a trial is noted with it, and warned of in the end.
    """
    end = math.inf if timeout is None else time.monotonic() + timeout
    done = _finished(study)
    left = None if n_trials is None else n_trials - len(done)
    if left is None or left > 0:

        def stop(study: optuna.Study, trial: FrozenTrial) -> None:
            # Other processes may be at the same study.
            if n_trials is not None and len(_finished(study)) >= n_trials:
                study.stop()

        with progress(evaluation.objectives, done, n_trials, verbose) as bar:
            while left is None or left > 0:
                rest = None if timeout is None else max(0.0, end - time.monotonic())
                try:
                    study.optimize(
                        evaluation, n_trials=left, timeout=rest, n_jobs=_threads(n_jobs),
                        catch=(Exception,), callbacks=[bar, stop],
                    )  # fmt: skip
                    break
                except ValueError as error:
                    # Without a sign of life for long, one was taken for killed and done by others.
                    if "Cannot tell a" not in str(error):
                        raise
                    left = None if n_trials is None else n_trials - len(_finished(study))
    if grace is not None and n_trials is not None:
        _settle(study, evaluation, min(end, time.monotonic() + grace))
    errors = [t.user_attrs["error"] for t in _finished(study) if t.state == TrialState.FAIL]
    if errors and evaluation.first_error is not None:
        warnings.warn(
            f"{len(errors)} trials failed, the first with {errors[0]}; each has its message as "
            'user attribute "error" in study_.trials',
            FitFailedWarning,
            stacklevel=4,
        )


def _settle(study: optuna.Study, evaluation: Evaluation, end: float) -> None:
    """Wait for trials of other workers, and carry out those whose worker was killed.

    end : by `time.monotonic`, when those that still run are known to be alive
    """
    while time.monotonic() < end:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            optuna.storages.fail_stale_trials(study)
        states = {trial.state for trial in study.get_trials(deepcopy=False)}
        if TrialState.WAITING in states:
            study.optimize(evaluation, n_trials=1, catch=(Exception,))
        elif TrialState.RUNNING in states:
            time.sleep(0.2)
        else:
            return


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return [trial for trial in study.get_trials(deepcopy=False) if is_finished(trial)]


def _threads(n_jobs: int | None) -> int:
    """Count as joblib does: -1 for one on each core."""
    if n_jobs is None:
        return 1
    return n_jobs if n_jobs > 0 else max(1, joblib.cpu_count() + 1 + n_jobs)
