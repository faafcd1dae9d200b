"""Studies in a file that machines share, where killed trials are known as such."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.trial import TrialState

_SIGN = "skcompress:sign_of_life"


class Journal(JournalStorage, BaseHeartbeat):  # type: ignore[misc]
    """Optuna's journal with signs of life, which it has for databases only.

    heartbeat_interval : seconds from one sign of a running trial to the next
    grace_period : seconds without one after which it counts as killed
    callback : takes the study and a killed trial, such as Optuna's that tries it again

    A sign is a number that a trial counts up. Each process watches with a clock of its own whether
    it changes, so that clocks need not agree; what was killed before a process began is known
    to it `grace_period` seconds later. A trial that never gave one, as of processes that open the
    file in another way, is never taken for killed.
    """

    def __init__(
        self,
        backend: Any,
        heartbeat_interval: float,
        grace_period: float,
        callback: Callable[[Any, Any], None],
    ):
        super().__init__(backend)
        self.heartbeat_interval = heartbeat_interval
        self.grace_period = grace_period
        self._callback = callback
        self._given: dict[int, int] = {}
        self._seen: dict[int, tuple[int, float]] = {}

    def record_heartbeat(self, trial_id: int) -> None:
        """Give a sign of life of a trial."""
        self._given[trial_id] = self._given.get(trial_id, 0) + 1
        with suppress(RuntimeError):  # others took it for killed and finished it
            self.set_trial_system_attr(trial_id, _SIGN, self._given[trial_id])

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        now = time.monotonic()
        stale = []
        for trial in self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,)):
            sign = trial.system_attrs.get(_SIGN)
            if sign is None:
                continue
            before, since = self._seen.get(trial._trial_id, (None, now))
            if sign != before:
                self._seen[trial._trial_id] = (sign, now)
            elif now - since > self.grace_period:
                stale.append(trial._trial_id)
        return stale

    def get_heartbeat_interval(self) -> Any:
        """Seconds from one sign to the next."""
        return self.heartbeat_interval

    def get_heartbeat_stale_trial_callback(self) -> Any:
        """What is called with the study and a killed trial."""
        return self._callback

    # Its name before Optuna 4.9.
    get_failed_trial_callback = get_heartbeat_stale_trial_callback
