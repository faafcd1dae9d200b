"""Factors fitted together: never worse than closed forms, better where these are not optimal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from skcompress.decompositions.spatial_svd import SpatialSVD
from skcompress.decompositions.svd import SVD
from skcompress.fitting.refining import refined
from skcompress.protocols import Factors, Metric
from skcompress.protocols.product import multiply_out
from skcompress.storages.pivot import Pivot


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def problem(generator, shape=(12, 8, 3, 3), dtype=torch.float32, output=None):
    """A weight and inputs with few strong directions, as after a ReLU."""
    weight = torch.randn(shape, generator=generator, dtype=dtype)
    n = weight[0].numel()
    mixing = torch.randn(n, n, generator=generator, dtype=torch.float64)
    mixing *= torch.logspace(0, -2, n, dtype=torch.float64)
    return weight, Metric.of_inputs(weight, mixing @ mixing.mT, output).with_ridge(weight)


def lost(factors: Factors, weight: Tensor, metric: Metric) -> float:
    """Relative mean squared error of the outputs, in float64, from the difference of weights."""
    difference = (multiply_out(factors) - weight).flatten(1).double()
    seen = metric.seen(difference)
    return float((seen @ metric.gram * seen).sum()) / metric.energy


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("root", ["none", "diagonal", "full"])
def test_spatial_factors_become_better(dtype, root, generator):
    scale = torch.logspace(0, -1, 12, dtype=torch.float64)
    mixing = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    roots = {"none": None, "diagonal": scale, "full": mixing + 4 * torch.eye(12)}
    weight, metric = problem(generator, dtype=dtype, output=roots[root])
    closed = SpatialSVD().factorize(weight, metric).factors(weight, 5)
    before = [t.clone() for t in closed.tensors]
    better = refined(closed, metric)
    assert lost(better, weight, metric) < 0.97 * lost(closed, weight, metric)
    assert all(map(torch.equal, closed.tensors, before))
    assert [t.shape for t in better.tensors] == [t.shape for t in closed.tensors]
    assert all(t.dtype == dtype and not t.requires_grad for t in better.tensors)


def test_what_is_optimal_stays(generator):
    weight, metric = problem(generator)
    closed = SVD("output").factorize(weight, metric).factors(weight, 5)
    better = refined(closed, metric)
    assert lost(better, weight, metric) == pytest.approx(lost(closed, weight, metric), rel=1e-3)


def test_the_error_is_the_one_of_the_goal_not_of_the_weight(generator):
    weight, metric = problem(generator)
    other = weight + 0.3 * torch.randn(weight.shape, generator=generator)
    goal = Metric.of_inputs(other, metric.gram)
    closed = SpatialSVD().factorize(weight, metric).factors(weight, 6)
    better = refined(closed, goal)
    assert lost(better, other, goal) < 0.9 * lost(closed, other, goal)


def test_pivots_stay_pivots(generator):
    weight, metric = problem(generator)
    closed = Pivot().stored(SVD("input").factorize(weight, metric).factors(weight, 5))
    better = refined(closed, metric)
    assert better.stages == closed.stages
    assert lost(better, weight, metric) <= lost(closed, weight, metric) * (1 + 1e-6)


def test_nothing_to_gain(generator):
    weight, metric = problem(generator)
    zero = torch.zeros_like(weight)
    nothing = Metric.of_inputs(zero, metric.gram)
    better = refined(SpatialSVD().factorize(zero, nothing).factors(zero, 2), nothing)
    assert all(t.isfinite().all() and not multiply_out(better).any() for t in better.tensors)


def test_in_a_callers_inference_mode(generator):
    with torch.inference_mode():
        weight, metric = problem(generator)
        closed = SpatialSVD().factorize(weight, metric).factors(weight, 5)
        better = refined(closed, metric)
        assert torch.is_inference_mode_enabled()
    assert lost(better, weight, metric) < lost(closed, weight, metric)
