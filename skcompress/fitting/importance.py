"""How much the error of each weight counts when a budget is divided."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import exp, log
from statistics import fmean

from .candidates import Findings

# Of the layers' sensitivities; which of them suits a network is found out by comparison.
POWERS = (0.0, 0.25, 0.5, 1.0)
# Samples that this takes: with more, only what comes of the best power is fitted to all of them.
TRIED_ON = 1024


def importances(
    found: Mapping[str, Findings], sensitivity: float | str
) -> Iterator[dict[str, float]]:
    """Yield what to multiply the relative error of each weight by, for each power to be tried.

    sensitivity : power of the weights' K-FAC energies, or "auto" for several
    """
    # Rounding leaves less than nothing of inputs that never change.
    known = {name: f.energy for name, f in found.items() if f.energy and f.energy > 0}
    typical = exp(fmean(map(log, known.values()))) if known else 1.0
    for power in POWERS if isinstance(sensitivity, str) else (sensitivity,):
        yield {name: (value / typical) ** power for name, value in known.items()} if power else {}
