"""What beats what, and where a front bulges, against definitions written out."""

from __future__ import annotations

import numpy as np
import pytest

from skcompress.tuning.pareto import knee, nondominated


@pytest.mark.parametrize("n_objectives", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_front_is_what_nothing_beats(n_objectives, seed):
    # Whole numbers, so that many are equal.
    losses = np.random.default_rng(seed).integers(0, 6, (60, n_objectives)).astype(float)
    kept = nondominated(losses)
    for i, row in enumerate(losses):
        beaten = ((losses <= row).all(axis=1) & (losses < row).any(axis=1)).any()
        earlier_twin = (losses[:i] == row).all(axis=1).any()
        assert kept[i] == (not beaten and not earlier_twin)


def test_of_nothing_nothing():
    assert nondominated(np.empty((0, 2))).shape == (0,)


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_knee_is_farthest_from_the_chord_in_any_units(scale):
    x = np.linspace(0.1, 1, 50)
    front = np.stack([x, 0.1 / x], axis=1)
    start, end = front[0], front[-1]
    normal = np.array([start[1] - end[1], end[0] - start[0]])
    farthest = int(((front - start) @ normal).argmin())
    assert knee(front * [1, scale] + 7) == farthest


def test_knee_of_one_point_and_of_a_column_without_spread():
    assert knee(np.array([[3.0, 4.0]])) == 0
    assert knee(np.array([[1.0, 2.0], [1.0, 2.0]])) == 0
