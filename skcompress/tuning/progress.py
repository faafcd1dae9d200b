"""A bar over the trials, with the best so far."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from tqdm.auto import tqdm

from ..protocols import Objective
from .pareto import nondominated
from .studies import excess_of


class Progress:
    """Callback of a study that moves a bar.

    Shows the value of one objective, or of several those of the best by the first, and how
    many compromises there are; of trials that meet the constraints.
    """

    def __init__(
        self, objectives: Mapping[str, Objective], trials: Sequence[FrozenTrial], bar: tqdm
    ):
        self.objectives = objectives
        self.bar = bar
        self._lock = threading.Lock()
        self._values = [trial.values for trial in trials if _counts(trial)]

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        with self._lock:
            if _counts(trial):
                self._values.append(trial.values)
            if self._values:
                self.bar.set_postfix_str(self._best(), refresh=False)
            self.bar.update()

    def _best(self) -> str:
        signs = [-1 if o.direction == "maximize" else 1 for o in self.objectives.values()]
        losses = np.array(self._values) * signs
        front = losses[nondominated(losses)]
        best = front[front[:, 0].argmin()] * signs
        shown = ", ".join(
            f"{one.heading(name)} {f'{value:,.0f}' if value > 1e3 else f'{one.scale * value:.4g}'}"
            for (name, one), value in zip(self.objectives.items(), best, strict=True)
        )
        return shown if len(signs) == 1 else f"best {shown}; {len(front)} on the front"


def _counts(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE and all(e <= 0 for e in excess_of(trial))


@contextmanager
def progress(
    objectives: Mapping[str, Objective],
    trials: Sequence[FrozenTrial],
    total: int | None,
    verbose: Any,
) -> Iterator[Progress]:
    """Show a bar that starts at the trials that are there.

    total : how many there will be; None where nobody knows
    """
    with tqdm(total=total, initial=len(trials), unit="trial", disable=not verbose) as bar:
        yield Progress(objectives, trials, bar)


@contextmanager
def quiet(verbose: int) -> Iterator[None]:
    """Keep Optuna from printing a line a trial, unless more than a bar is asked for."""
    before = optuna.logging.get_verbosity()
    if verbose < 2:
        optuna.logging.set_verbosity(max(before, optuna.logging.ERROR))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
