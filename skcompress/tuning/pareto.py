"""Which of several compromises no other one beats, and where more of one stops paying."""

from __future__ import annotations

import numpy as np


def nondominated(losses: np.ndarray) -> np.ndarray:
    """Tell which rows no other row beats: at least as good in all columns, better in one.

    losses : float array (n, objectives), less is better

    Gives a bool array (n,). Of equal rows the first only.

    >>> nondominated(np.array([[1.0, 2.0], [2.0, 1.0], [2.0, 2.0], [1.0, 2.0]])).tolist()
    [True, True, False, False]
    """
    kept = np.zeros(len(losses), dtype=bool)
    # In lexicographic order nothing is beaten by what comes after it. The sort is stable.
    for i in np.lexsort(losses.T[::-1]):
        front = losses[kept]
        kept[i] = not (front <= losses[i]).all(axis=1).any()
    return kept


def knee(losses: np.ndarray) -> int:
    """Give the row of a Pareto front that bulges out most towards the ideal.

    losses : float array (n, objectives) of points that do not dominate each other

    With each objective scaled to [0, 1] over the front, the row that is farthest below the
    plane through the ends of the front: the one with the least sum. Of a straight front, the
    first row.

    Das 1999, "On characterizing the 'knee' of the Pareto curve based on Normal-Boundary
    Intersection", Structural Optimization 18.

    >>> knee(np.array([[0.0, 1.0], [0.1, 0.2], [0.9, 0.1], [1.0, 0.0]]))
    1
    """
    low = losses.min(axis=0)
    spread = losses.max(axis=0) - low
    scaled = (losses - low) / np.where(spread > 0, spread, 1.0)
    return int(scaled.sum(axis=1).argmin())
