"""Numbers of values kept that lose least of the network's outputs in sum: dynamic programming."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from ..errors import AllocationValueError
from ..protocols import Prunable, SparsityAllocation
from ..spaces import Options, SearchSpace

_NEEDS = {"predicted": "distortion", "measured": "measured_distortion"}

# Numbers kept of one weight that are tried: shares of it, evenly spaced in the logarithm.
_LEVELS = 24
_SMALLEST_SHARE = 0.01
# Into how many steps the budget of the whole model is cut.
_STEPS = 4000


class RateDistortion(SparsityAllocation):
    """Minimises the sum over weights of what the outputs of the network lose.

    Losses of different weights add up, to good accuracy; of one weight they are known at some
    numbers of values kept. Which to take of each weight is a knapsack, solved by dynamic
    programming over the budget in steps of a few thousandths, and between the levels by going on
    along the straight line to the next.

    Needs data.

    distortion : "predicted" to second order, from the moments of a layer's inputs and of the
        gradients at its outputs (K-FAC), by one backward pass: right for few zeros, far too small
        for many. Or "measured" as in the paper, by running the network on the data with the zeros
        of each weight alone, 24 times for each.

    References: Xu et al. 2023, arXiv 2308.10438 (ICCV).
    """

    search_space: ClassVar[SearchSpace] = {"distortion": Options(tuple(_NEEDS))}

    def __init__(self, distortion: str = "predicted"):
        self.distortion = distortion

    @property
    def needs(self) -> tuple[str, ...]:
        if self.distortion not in _NEEDS:
            rule = "'predicted' or 'measured'"
            raise AllocationValueError("RateDistortion", "distortion", rule, self.distortion)
        return (_NEEDS[self.distortion],)

    def divide(self, weights: Sequence[Prunable], n_kept: int) -> list[int]:
        levels = [_levels(weight) for weight in weights]
        losses = []
        for weight, counts in zip(weights, levels, strict=True):
            assert weight.distortion is not None
            found = np.asarray(weight.distortion(counts.tolist()), dtype=np.float64)
            # More values lose more only by chance: of the criterion, or of rounding.
            losses.append(np.minimum.accumulate(found))
        chosen = least_loss(levels, losses, n_kept)
        return _filled(levels, losses, chosen, n_kept)


def _levels(weight: Prunable) -> np.ndarray:
    shares = np.geomspace(_SMALLEST_SHARE, 1.0, _LEVELS)
    counts = np.rint(shares * weight.size).astype(np.int64)
    return np.unique(np.append(np.clip(counts, weight.least, weight.size), weight.least))


def least_loss(
    levels: Sequence[np.ndarray], losses: Sequence[np.ndarray], budget: int
) -> list[int]:
    """Positions of one level per weight, of the least summed loss within the budget.

    levels : ascending, the first of which fit together; costs are rounded up to whole steps, so
        that the budget is kept
    """
    least = [int(level[0]) for level in levels]
    free = budget - sum(least)
    step = max(1.0, free / _STEPS)
    n_steps = int(free / step)
    best = np.zeros(n_steps + 1)
    trail = []
    for level, loss in zip(levels, losses, strict=True):
        extra = np.ceil((level - level[0]) / step - 1e-9).astype(np.int64)
        values = np.full((len(level), n_steps + 1), np.inf)
        for i, cost in enumerate(extra):
            if cost <= n_steps:
                values[i, cost:] = best[: n_steps + 1 - cost] + loss[i]
        chosen = values.argmin(0)
        best = values[chosen, np.arange(n_steps + 1)]
        trail.append((chosen, extra))
    state = n_steps
    positions = []
    for chosen, extra in reversed(trail):
        position = int(chosen[state])
        positions.append(position)
        state -= int(extra[position])
    return positions[::-1]


def _filled(
    levels: Sequence[np.ndarray],
    losses: Sequence[np.ndarray],
    chosen: Sequence[int],
    n_kept: int,
) -> list[int]:
    """Spend what is left where a value saves most, on the way to each weight's next level."""
    counts = [int(level[i]) for level, i in zip(levels, chosen, strict=True)]
    left = n_kept - sum(counts)
    slopes = []
    for i, (level, loss, position) in enumerate(zip(levels, losses, chosen, strict=True)):
        for a in range(position, len(level) - 1):
            slope = (loss[a] - loss[a + 1]) / (level[a + 1] - level[a])
            slopes.append((-slope, i, int(level[a + 1] - level[a])))
    for _, i, room in sorted(slopes):
        taken = min(left, room)
        counts[i] += taken
        left -= taken
    return counts
