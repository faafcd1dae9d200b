"""One budget of parameters for the whole model, divided optimally over the layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import BudgetError
from ..protocols import Allocation, Choice, Layer, Prunable, SparsityAllocation
from .largest import numbers_of_largest
from .options import Options, frontier, pooled_options

# Partial solutions carried from layer to layer. With fewer than this the result is
# exactly optimal; beyond, the least promising are dropped.
_BEAM = 1000


class GlobalBudget(Allocation, SparsityAllocation):
    """One budget for the whole model: of parameters, or of values that are not zero.

    Of ranks: minimises the sum over layers of the relative energy lost, times the layer's
    importance, subject to the total of stored numbers: a multiple-choice knapsack, solved by a
    Lagrangian bound and dynamic programming over what the bound leaves. Which of several ways of
    cutting a weight, which rank, or dense, is all one choice. Untrained weights have flat
    spectra, and the optimum then often leaves some layers dense and cuts others to almost nothing.

    Of values that stay: those with the largest scores of all, but for the least number of each
    weight.
    """

    def allocate(self, layers: Sequence[Layer], rank: float, n_fixed: float) -> list[Choice | None]:
        n_total = n_fixed + sum(layer.dense for layer in layers)
        # Tolerance for fractions that are not exact in binary, such as 0.3.
        budget = int(rank * n_total + 1e-6) - n_fixed
        options = [frontier(pooled_options(layer)).weighted(layer.importance) for layer in layers]
        smallest = sum(int(o.costs[0]) for o in options)
        if smallest > budget:
            hint = "or shrink what is left out too"
            raise BudgetError(rank, (smallest + n_fixed) / n_total, "the model", hint)
        positions = knapsack(options, budget)
        return [o.choice(p) for o, p in zip(options, positions, strict=True)]

    def divide(self, weights: Sequence[Prunable], n_kept: int) -> list[int]:
        return numbers_of_largest(weights, n_kept)


def knapsack(options: Sequence[Options], budget: float) -> list[int]:
    """Choose one option per layer: least summed error at a summed cost within `budget`.

    options : frontiers (ascending cost, falling error) of which the cheapest fit together
    Returns the position of the choice in each.
    """
    price, greedy = lagrangian(options, budget)
    reduced = []
    bound = -price * budget
    gap = sum(float(o.errors[p]) for o, p in zip(options, greedy, strict=True))
    for o in options:
        value = o.errors + price * o.costs
        reduced.append(value - value.min())
        bound += float(value.min())
    # No solution better than the greedy one has options whose summed excess over the
    # bound is above the gap between the two.
    gap = max(gap - bound, 0.0) * (1 + 1e-9) + 1e-15
    core = [np.flatnonzero(r <= gap) for r in reduced]
    found = _search(options, core, reduced, gap, budget)
    return greedy if found is None else found


def lagrangian(options: Sequence[Options], budget: float) -> tuple[float, list[int]]:
    """Give the price of one stored number at the budget, and the greedy solution.

    Climbs the lower convex hulls of all layers in order of error saved per number, as
    far as the budget goes, then spends what is left on any affordable option.
    """
    slopes, extras, owners, positions = [], [], [], []
    for layer, o in enumerate(options):
        hull = lower_hull(o)
        extra = np.diff(o.costs[hull])
        slopes.append(-np.diff(o.errors[hull]) / extra)
        extras.append(extra)
        owners.append(np.full(len(extra), layer))
        positions.append(hull[1:])
    # Along one hull the slopes fall, so a stable sort keeps each layer's own order.
    slope = np.concatenate(slopes)
    order = np.argsort(-slope, kind="stable")
    left = budget - sum(int(o.costs[0]) for o in options)
    spent = np.cumsum(np.concatenate(extras)[order])
    n_taken = int(np.searchsorted(spent, left, side="right"))
    chosen = np.zeros(len(options), dtype=int)
    taken = order[:n_taken]
    # Of repeated indices the last assignment counts: the step furthest along the hull.
    chosen[np.concatenate(owners)[taken]] = np.concatenate(positions)[taken]
    # The first step that does not fit sets the price of a number.
    price = float(slope[order[n_taken]]) if n_taken < len(order) else 0.0
    left -= int(spent[n_taken - 1]) if n_taken else 0
    return price, _spend(options, chosen.tolist(), left)


def _spend(options: Sequence[Options], chosen: list[int], left: float) -> list[int]:
    """Take, again and again, the affordable option that saves the most error."""
    while True:
        best = (0.0, -1, -1)
        for layer, o in enumerate(options):
            now = chosen[layer]
            reach = int(np.searchsorted(o.costs, o.costs[now] + left, side="right")) - 1
            saved = float(o.errors[now] - o.errors[reach])
            if saved > best[0]:
                best = (saved, layer, reach)
        _, layer, reach = best
        if layer < 0:
            return chosen
        left -= int(options[layer].costs[reach] - options[layer].costs[chosen[layer]])
        chosen[layer] = reach


def lower_hull(options: Options) -> np.ndarray:
    """Positions on the lower convex hull of (cost, error), first to last."""
    costs, errors = options.costs.tolist(), options.errors.tolist()
    hull: list[int] = []
    for i, (cost, error) in enumerate(zip(costs, errors, strict=True)):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            rise, run = error - errors[a], cost - costs[a]
            if (errors[b] - errors[a]) * run < rise * (costs[b] - costs[a]):
                break
            hull.pop()
        hull.append(i)
    return np.array(hull)


def _search(
    options: Sequence[Options],
    core: Sequence[np.ndarray],
    reduced: Sequence[np.ndarray],
    gap: float,
    budget: float,
) -> list[int] | None:
    """Dynamic programming over the undominated sums of cost and error."""
    cheapest = [int(o.costs[c].min()) for o, c in zip(options, core, strict=True)]
    rest = sum(cheapest)
    costs, errors, excess = np.zeros(1, np.int64), np.zeros(1), np.zeros(1)
    trail: list[tuple[np.ndarray, np.ndarray]] = []
    for o, c, r, least in zip(options, core, reduced, cheapest, strict=True):
        rest -= least
        sums = [
            (old[:, None] + new[None, c]).ravel()
            for old, new in ((costs, o.costs), (errors, o.errors), (excess, r))
        ]
        alive = np.flatnonzero((sums[0] + rest <= budget) & (sums[2] <= gap))
        order = alive[np.lexsort((sums[1][alive], sums[0][alive]))]
        before = np.concatenate([[np.inf], np.minimum.accumulate(sums[1][order])[:-1]])
        order = order[sums[1][order] < before]
        if len(order) > _BEAM:
            order = np.sort(order[np.argsort(sums[2][order], kind="stable")[:_BEAM]])
        if not len(order):
            return None
        costs, errors, excess = (s[order] for s in sums)
        trail.append((order // len(c), c[order % len(c)]))
    state = int(np.argmin(errors))
    chosen = []
    for parents, positions in reversed(trail):
        chosen.append(int(positions[state]))
        state = int(parents[state])
    return chosen[::-1]
