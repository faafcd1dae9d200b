"""Budgets that cannot be reached."""

from __future__ import annotations

import math

from .base import SkcompressError


def _round_up(share: float) -> float:
    return math.ceil(share * 1e4) / 1e4


class BudgetError(SkcompressError, ValueError):
    """A budget that no choice of ranks can reach.

    `smallest` is the smallest fraction of the `unit` (parameters, FLOPs) that can be reached.
    Allocations leave the unit out: they see numbers only.
    """

    def __init__(
        self, rank: float, smallest: float, scope: str, hint: str = "", unit: str = "parameters"
    ):
        self._said = (rank, smallest, scope, hint)
        self.smallest = _round_up(smallest)
        super().__init__(
            f"rank={rank:g} cannot be reached: {scope} keeps at least {self.smallest:g} of its "
            f"{unit}. Ask for rank >= {self.smallest:g}" + (f", {hint}" if hint else "")
        )

    def of(self, unit: str) -> BudgetError:
        """Give the same error for a budget of something else than parameters."""
        return type(self)(*self._said, unit=unit)


class MissingSpectrumError(SkcompressError, ValueError):
    """A threshold on singular values, asked of a decomposition that has none."""

    def __init__(self, layer: str, scheme: str):
        super().__init__(
            f"the automatic rank needs singular values, and scheme {scheme!r} of layer "
            f"{layer!r} has none: give rank as a number"
        )
