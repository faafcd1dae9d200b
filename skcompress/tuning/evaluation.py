"""One trial: a compressor with parameters that it draws, a smaller model, and its worth."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import optuna
from optuna.trial import FixedTrial, FrozenTrial, TrialState
from sklearn.base import clone
from torch import nn

from ..errors import BudgetError
from ..fitting.memo import Memo, compressors_in, share
from ..layers.reparametrized import copied
from ..protocols import Compressor, Objective
from .candidates import Candidates, seeded
from .constraints import Constraint
from .gate import Gate
from .measuring import Measurement, Meter
from .studies import excess_of, set_excess
from .training import Look, Parts, Rebuilt, Training, dense_network, refitted, training_key
from .trials import Row


@dataclass
class Evaluation:
    """Objective function of a study.

    data : what compressors are fitted with, besides the network; None for nothing
    training : of what trials train before they compress it; None where they compress `model`
    watched : whether a network amid training is measured after each epoch, for the study's pruner
    dense : what the uncompressed model was measured to be; to be set before the first trial
    seed : for compressors that draw random numbers; the same for all trials of a process, which
        can thus share what they compute
    shared : what they have computed

    Ranks that cannot be reached prune a trial; all else that goes wrong fails it.

    What a trial found out stands in its user attributes, whatever becomes of it: score,
    n_parameters and whatever else is measured; latency_contended, whether others were at trials
    of the study while latency was timed; seconds, and of these seconds_training and
    seconds_compressing; ranks, by name of the weight; feasible, random_state, error.
    """

    model: nn.Module
    data: object
    candidates: Candidates
    objectives: Mapping[str, Objective]
    constraints: Sequence[Constraint]
    meter: Meter
    gate: Gate
    seed: int
    shared: Memo
    training: Training | None = None
    watched: bool = False
    dense: Measurement = field(init=False)
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
        found, params = self.candidates.drawn(trial, self._seed(trial))
        return share(found, self.shared), params

    def uncompressed(self) -> nn.Module:
        """Give the network that all trials are compared with: as it is, or trained as set."""
        if self.training is None:
            return copied(self.model)
        parts = Parts.of(seeded(clone(self.candidates.first), self.seed))
        return dense_network(self.training.trained(parts.net, None))

    def rebuilt(self, trial: FrozenTrial) -> Rebuilt:
        """Do again what a finished trial did, as far as it is not known any more."""
        estimator, _ = self.estimator(trial)
        if self.training is None:
            small = estimator.fit_transform(self.model, self.data)
            share(estimator, None)
            return Rebuilt(estimator, estimator, self.model, small)
        parts = self._parts(estimator, trial)
        net = self.training.trained(parts.net, self._key(trial, estimator))
        return refitted(estimator, parts, net, self.data)

    def _measured(self, trial: optuna.Trial) -> Measurement:
        with self.gate.working():
            estimator, _ = self.estimator(trial)
            network, compressor = self.model, estimator
            if self.training is not None:
                network, compressor = self._trained(self.training, estimator, trial)
            start = perf_counter()
            small = self._small(compressor, network)
            trial.set_user_attr("seconds_compressing", round(perf_counter() - start, 6))
            if ranks := _ranks(compressor):
                trial.set_user_attr("ranks", ranks)
            values = self._noted(small, trial, timed=False)
        # What is timed, while all threads stand still where it decides, else beside their trials.
        with self.gate.alone() if self.meter.alone else self.gate.working():
            before = self._contended(trial)
            timed = self._noted(small, trial, timed=True)
            contended = before or self._contended(trial)
        for name in timed:
            trial.set_user_attr(f"{name}_contended", contended)
        found = self.meter.measurement(values | timed)
        excess = {c.text: c.excess(found, self.dense) for c in self.constraints}
        if excess:
            set_excess(trial, excess)
            trial.set_user_attr("feasible", all(value <= 0 for value in excess.values()))
        return found

    def _noted(self, small: nn.Module, trial: optuna.Trial, *, timed: bool) -> dict[str, float]:
        """Measure what is timed, or what is not; each number is noted before the next."""
        found = {}
        for name in self.meter.names(timed=timed):
            found[name] = self.meter.measure(name, small, trial)
            trial.set_user_attr(name, found[name])
        return found

    def _trained(
        self, training: Training, estimator: Any, trial: optuna.Trial
    ) -> tuple[nn.Module, Any]:
        """Give the network of a trial, trained, and what compresses it."""
        start = perf_counter()
        parts = self._parts(estimator, trial)
        compressor = parts.compressor
        look = self._look(compressor, trial)
        network = dense_network(training.trained(parts.net, self._key(trial, estimator), look))
        trial.set_user_attr("seconds_training", round(perf_counter() - start, 6))
        return network, compressor

    def _parts(self, estimator: Any, trial: Any) -> Parts:
        parts = Parts.of(estimator)
        if parts.inner is not None:  # made just now, of a name maybe
            share(seeded(parts.inner, self._seed(trial)), self.shared)
        return parts

    def _key(self, trial: Any, estimator: Any) -> Hashable:
        label = self.candidates.label(trial)
        return ("trained", self._seed(trial), training_key(trial.params, estimator, label))

    def _seed(self, trial: Any) -> int:
        return int(trial.user_attrs.get("random_state", self.seed))

    def _look(self, compressor: Any, trial: optuna.Trial) -> Look:
        """Give what looks at a network in training: whether it is worth going on."""

        def look(network: nn.Module, n_epochs: int) -> None:
            # Weights that will be others in the next epoch are nothing to remember.
            own = None if compressor is None else clone(compressor)
            if n_epochs == 0:
                if isinstance(own, Compressor):
                    self._small(own, network)  # what cannot work is known before the training
            elif self.watched:
                score = self.meter.measure("score", self._small(own, network), FixedTrial({}))
                trial.report(score, n_epochs - 1)
                if trial.should_prune():
                    raise optuna.TrialPruned(f"pruned after {n_epochs} epochs")

        return look

    def _small(self, compressor: Any, network: nn.Module) -> nn.Module:
        """Compress for measuring; `network` stays as it is."""
        if compressor is None:
            return copied(network).eval()
        _without_report(compressor)
        small: nn.Module = compressor.fit_transform(network, self.data)
        return small.eval()

    def _contended(self, trial: optuna.Trial) -> bool:
        """Whether others are at trials of the study: processes, maybe on this machine, or threads.

        Threads do not count where they stand still.
        """
        running = trial.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        with self._lock:
            still = self._running if self.meter.alone else {trial.number}
            return not {other.number for other in running} <= still


def _without_report(estimator: Any) -> None:
    """Spare the forwards that only a report needs, of which a trial has none."""
    for inner in compressors_in(estimator):
        if "measure" in inner.get_params(deep=False):
            inner.set_params(measure=False)


def _ranks(compressor: Any) -> dict[str, Any]:
    """Give the rank of each weight that has one, as plain data; of a Pipeline, all steps'."""
    found: dict[str, Any] = {}
    for inner in [] if compressor is None else compressors_in(compressor):
        found |= getattr(inner, "ranks_", {})
    return {name: list(r) if isinstance(r, tuple) else int(r) for name, r in found.items()}


def row_of(trial: FrozenTrial, meter: Meter) -> Row:
    """Read a completed trial back."""
    known = trial.user_attrs
    contended = (name for name in meter.objectives if known.get(f"{name}_contended"))
    found = meter.measurement(known)
    seconds = known.get("seconds")
    return Row(trial.number, trial.params, found, excess_of(trial), seconds, tuple(contended))
