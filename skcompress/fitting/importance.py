"""How much the error of each weight counts when a budget is divided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import exp, log
from statistics import fmean

from .factorizing import FactorizedSite

# Of the layers' sensitivities; which of them suits a network is found out by comparison.
POWERS = (0.0, 0.25, 0.5, 1.0)
# Samples that this takes: with more, only what comes of the best power is fitted to all of them.
TRIED_ON = 1024


def importances(
    sites: Sequence[FactorizedSite], sensitivity: float | str
) -> Iterator[dict[str, float]]:
    """Yield what to multiply the relative error of each site by, for each power to be tried.

    sensitivity : power of the sites' K-FAC energies, or "auto" for several
    """
    # Rounding leaves less than nothing of inputs that never change.
    known = {s.name: s.sensitivity for s in sites if s.sensitivity and s.sensitivity > 0}
    typical = exp(fmean(map(log, known.values()))) if known else 1.0
    for power in POWERS if isinstance(sensitivity, str) else (sensitivity,):
        yield {name: (value / typical) ** power for name, value in known.items()} if power else {}
