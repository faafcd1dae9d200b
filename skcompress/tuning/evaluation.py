"""One trial: a compressor with parameters that it draws, a smaller model, and its worth."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from torch import nn

from ..compressors.base import FactorizingCompressor
from ..compressors.sharing import Shared, compressors_in, share
from ..errors import BudgetError
from .candidates import Candidates
from .constraints import Constraint
from .gate import Gate
from .objectives import Measurement, Meter
from .studies import excess_of, set_excess
from .trials import Row


@dataclass
class Evaluation:
    """Objective function of a study.

    data : what compressors are fitted with, besides `model`; None for nothing
    dense : what the uncompressed model was measured to be
    seed : for compressors that draw random numbers; the same for all trials of a process, which
        can thus share what they compute
    shared : what they have computed

    Ranks that cannot be reached prune a trial; all else that goes wrong fails it.

    What a trial found out stands in its user attributes, whatever becomes of it: score,
    n_parameters, flops, bytes, latency in seconds and latency_contended, whether other
    processes were at trials of the study meanwhile; seconds, and of these
    seconds_compressing; feasible, random_state, error.
    """

    model: nn.Module
    data: object
    candidates: Candidates
    objectives: Sequence[str]
    constraints: Sequence[Constraint]
    meter: Meter
    gate: Gate
    dense: Measurement
    seed: int
    shared: Shared
    first_error: Exception | None = None
    _running: set[int] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, trial: optuna.Trial) -> tuple[float, ...]:
        """Carry out a trial and give its values, in the order of the objectives."""
        start = perf_counter()
        trial.set_user_attr("random_state", self.seed)
        with self._lock:
            self._running.add(trial.number)
        try:
            found = self._measured(trial)
        except optuna.TrialPruned:
            raise
        except Exception as error:
            trial.set_user_attr("error", f"{type(error).__name__}: {error}")
            if isinstance(error, BudgetError):
                # From pruned trials, but not from failed ones, samplers learn to keep away.
                raise optuna.TrialPruned(str(error)) from error
            with self._lock:
                self.first_error = self.first_error or error
            raise
        finally:
            trial.set_user_attr("seconds", round(perf_counter() - start, 6))
            with self._lock:
                self._running.discard(trial.number)
        return tuple(float(getattr(found, name)) for name in self.objectives)

    def estimator(self, trial: optuna.Trial | FrozenTrial) -> tuple[Any, dict[str, Any]]:
        """Give the estimator of a trial, running or finished, and what is set on it."""
        seed = trial.user_attrs.get("random_state", self.seed)
        found, params = self.candidates.drawn(trial, seed)
        return share(found, self.shared), params

    def _measured(self, trial: optuna.Trial) -> Measurement:
        with self.gate.working():
            start = perf_counter()
            estimator, _ = self.estimator(trial)
            _without_report(estimator)
            small = estimator.fit_transform(self.model, self.data).eval()
            trial.set_user_attr("seconds_compressing", round(perf_counter() - start, 6))
            size = self.meter.size(small)
            for name, value in size.items():
                if value is not None:
                    trial.set_user_attr(name, value)
            score = self.meter.score(small, trial)
            if score is not None:
                trial.set_user_attr("score", score)
        latency = None
        if self.meter.times:
            with self.gate.alone():
                before = self._busy_elsewhere(trial)
                latency = self.meter.latency(small)
                contended = before or self._busy_elsewhere(trial)
            trial.set_user_attr("latency", latency)
            trial.set_user_attr("latency_contended", contended)
        found = Measurement(score=score, latency=latency, **size)
        excess = {c.text: c.excess(found, self.dense) for c in self.constraints}
        if excess:
            set_excess(trial, excess)
            trial.set_user_attr("feasible", all(value <= 0 for value in excess.values()))
        return found

    def _busy_elsewhere(self, trial: optuna.Trial) -> bool:
        """Whether other processes, maybe on this machine, are at trials of the study."""
        running = trial.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        with self._lock:
            return not {other.number for other in running} <= self._running


def _without_report(estimator: Any) -> None:
    """Spare the forwards that only a report needs, of which a trial has none."""
    for inner in compressors_in(estimator):
        if isinstance(inner, FactorizingCompressor):
            inner.set_params(measure=False)


def row_of(trial: FrozenTrial) -> Row:
    """Read a completed trial back."""
    known = trial.user_attrs
    found: Any = {name: known.get(name) for name in Measurement.__dataclass_fields__}
    return Row(
        trial.number, trial.params, Measurement(**found), excess_of(trial), known.get("seconds")
    )
