"""Whole numbers in given proportions, between a least and a most, that add up exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..protocols import Prunable


def in_proportion(weights: Sequence[Prunable], parts: Sequence[float], n_kept: int) -> list[int]:
    """Give each weight a number in proportion to its part, no less than `least`, at most `size`.

    parts : non-negative; where those that can take more are all zero, by size
    """
    least = np.array([weight.least for weight in weights], dtype=np.int64)
    most = np.array([weight.size for weight in weights], dtype=np.int64)
    wanted = np.asarray(parts, dtype=np.float64)

    def at(scale: float, by: np.ndarray) -> np.ndarray:
        return np.clip(scale * by, least, most)

    if at(np.inf, np.where(wanted > 0, wanted, 1e-300)).sum() < n_kept or not wanted.any():
        wanted = most.astype(np.float64)
    wanted = np.maximum(wanted, 1e-12 * wanted.max())
    low, high = 0.0, float((most / wanted).max())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle, wanted).sum() <= n_kept else (low, middle)
    exact = at(low, wanted)
    counts = np.floor(exact).astype(np.int64)
    # What rounding down leaves goes to the largest remainders, then to whoever has room.
    order = np.argsort(-(exact - counts), kind="stable")
    missing = n_kept - int(counts.sum())
    while missing:
        for i in order[counts[order] < most[order]][:missing]:
            counts[i] += 1
            missing -= 1
    return counts.tolist()
