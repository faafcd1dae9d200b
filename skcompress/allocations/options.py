"""The options of a layer pooled over its curves, and the few questions asked of them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..protocols import Choice, Layer


class Options(NamedTuple):
    """What could be done with one layer; the last option leaves it dense.

    costs : int array (n,), stored numbers
    errors : float array (n,), share of the weight's energy lost, in [0, 1]
    curves, indices : int arrays (n,), where each option comes from; -1 for dense
    """

    costs: np.ndarray
    errors: np.ndarray
    curves: np.ndarray
    indices: np.ndarray

    def choice(self, position: int) -> Choice | None:
        """Option at `position` as allocations return it."""
        if self.curves[position] < 0:
            return None
        return Choice(int(self.curves[position]), int(self.indices[position]))

    def weighted(self, importance: float) -> Options:
        """Count every error so many times."""
        return self._replace(errors=self.errors * importance)

    def take(self, positions: np.ndarray) -> Options:
        """Keep the options at these positions, in this order."""
        return Options(*(column[positions] for column in self))


def pooled_options(layer: Layer) -> Options:
    """All options of `layer` that are smaller than dense, and dense itself last."""
    columns: list[list[np.ndarray]] = [[], [], [], []]
    for number, curve in enumerate(layer.curves):
        smaller = np.flatnonzero(curve.costs < layer.dense)
        # An all-zero weight loses nothing at any rank.
        lost = curve.errors[smaller] / curve.total if curve.total > 0 else 0.0 * smaller
        columns[0].append(curve.costs[smaller])
        columns[1].append(lost)
        columns[2].append(np.full(len(smaller), number))
        columns[3].append(smaller)
    dense = (layer.dense, 0.0, -1, -1)
    return Options(*(np.concatenate([*c, [d]]) for c, d in zip(columns, dense, strict=True)))


def least_error(options: Options, budget: float) -> int | None:
    """Position of the least error among what costs at most `budget`; the cheapest of equals."""
    affordable = np.flatnonzero(options.costs <= budget)
    if not len(affordable):
        return None
    order = np.lexsort((options.costs[affordable], options.errors[affordable]))
    return int(affordable[order[0]])


def least_cost(options: Options, error: float) -> int:
    """Position of the least cost among what loses at most `error`; the best of equals."""
    good = np.flatnonzero(options.errors <= error)
    order = np.lexsort((options.errors[good], options.costs[good]))
    return int(good[order[0]])


def frontier(options: Options) -> Options:
    """Keep what no other option beats, by ascending cost and strictly falling error."""
    order = np.lexsort((options.errors, options.costs))
    errors = options.errors[order]
    best_before = np.concatenate([[np.inf], np.minimum.accumulate(errors)[:-1]])
    return options.take(order[errors < best_before])
