"""Allocations that look at one layer at a time: uniform, energy, automatic threshold."""

from __future__ import annotations

import numpy as np
import pytest

from skcompress.allocations.energy import Energy
from skcompress.allocations.threshold import Threshold, hard_threshold
from skcompress.allocations.uniform import Uniform
from skcompress.errors import BudgetError, MissingSpectrumError
from skcompress.protocols import Choice, Curve, Layer, Spectrum


def layer(values, rows, columns, name="fc") -> Layer:
    values = np.asarray(values, dtype=float)
    ranks = np.arange(1, len(values) + 1)
    tails = np.append(np.cumsum(values[::-1] ** 2)[::-1][1:], 0.0)
    curve = Curve("svd", ranks, ranks * (rows + columns), tails, float((values**2).sum()),
                  len(values), (Spectrum(values, (rows, columns)),))  # fmt: skip
    return Layer(name, rows * columns, (curve,))


def test_uniform_keeps_the_fraction_of_each_layer():
    layers = [layer(np.ones(20), 20, 40), layer(np.ones(10), 10, 100)]
    for choice, one in zip(Uniform().allocate(layers, 0.5, 99), layers, strict=True):
        cost = one.curves[0].costs[choice.option]
        step = one.curves[0].costs[0]
        assert 0.5 * one.dense - step < cost <= 0.5 * one.dense


def test_uniform_leaves_what_cannot_get_so_small():
    small, large = layer(np.ones(3), 3, 40, "head"), layer(np.ones(20), 20, 40)
    assert Uniform().allocate([small, large], 0.3, 0)[0] is None
    with pytest.raises(BudgetError, match=r"layer 'head' keeps at least 0\.3584.*>= 0\.3584"):
        Uniform().allocate([small], 0.3, 0)


def test_energy_keeps_just_enough():
    one = layer([4.0, 2.0, 1.0, 1.0] + [0.0] * 16, 20, 40)  # energies 16, 4, 1, 1
    assert Energy().allocate([one], 16 / 22, 0) == [Choice(0, 0)]
    assert Energy().allocate([one], 0.9, 0) == [Choice(0, 1)]
    assert Energy().allocate([one], 1.0, 0) == [Choice(0, 3)]


def test_energy_leaves_a_full_spectrum_dense():
    assert Energy().allocate([layer(np.ones(20), 20, 40)], 1.0, 0) == [None]


def test_threshold_finds_the_rank_below_noise():
    rng = np.random.default_rng(0)
    rows, columns, rank = 80, 200, 6
    signal = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns))
    matrix = signal + 0.3 * rng.normal(size=(rows, columns))
    values = np.linalg.svd(matrix, compute_uv=False)
    assert Threshold().allocate([layer(values, rows, columns)], 0.3, 0) == [Choice(0, rank - 1)]


def test_threshold_of_a_square_matrix_is_the_published_constant():
    # Gavish & Donoho 2014: 2.858 times the median where the noise level is not known.
    assert hard_threshold(np.array([1.0]), 50, 50) == pytest.approx(2.858, abs=0.01)


def test_threshold_without_singular_values_says_so():
    curve = Curve("cp", np.array([1]), np.array([4]), np.zeros(1), 1.0, 1)
    with pytest.raises(MissingSpectrumError, match="'cp' of layer 'fc'"):
        Threshold().allocate([Layer("fc", 10, (curve,))], 0.3, 0)
