from __future__ import annotations

import numpy as np
import pytest
import torch
from skcompress_tensorly import TensorTrain
from skcompress_tensorly.train_shapes import cheapest_segmentation, rank_options
from test_conformance import dense_weight

from skcompress import registry


def best_within(curve, share: float, dense: int) -> float:
    """Least share of energy lost among options of at most `share` of the dense size."""
    return float(curve.errors[curve.costs <= share * dense].min() / curve.total)


def smooth_weight(*shape: int) -> torch.Tensor:
    """Weight whose energy falls along every axis, as in trained networks."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for axis, size in enumerate(shape):
        decay = torch.arange(1, size + 1).float().rsqrt()
        weight = weight * decay.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    for axis in range(2):
        turn = torch.linalg.qr(torch.randn(shape[axis], shape[axis])).Q
        weight = torch.tensordot(turn, weight, dims=([1], [axis])).movedim(0, axis)
    return weight


@pytest.mark.parametrize("shape", [(12, 8, 3, 3), (10, 6, 5), (8, 6, 3, 2, 3), (2, 40, 3, 3)])
def test_full_rank_is_exact_and_as_large_as_the_weight(shape, generator):
    weight = torch.randn(shape, generator=generator)
    factorization = TensorTrain().factorize(weight)
    curve = factorization.curve
    assert curve.rank_at(len(curve.costs) - 1) == curve.full_rank
    assert curve.costs[-1] == weight.numel()
    product = dense_weight(factorization.factors(weight, curve.full_rank))
    assert (product - weight).norm() <= 1e-5 * weight.norm()


def test_a_tensor_of_low_train_rank_is_found_exactly(generator):
    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    cores = rand(14, 3), rand(3, 3, 2), rand(2, 3, 2), rand(2, 16)
    weight = torch.einsum("ip,pxq,qyr,ro->oixy", *cores)
    curve = TensorTrain().factorize(weight).curve
    ranks = curve.ranks.tolist()
    exact = ranks.index([3, 2, 2])
    assert curve.errors[exact] <= 1e-10 * curve.total
    assert curve.costs[exact] == sum(core.numel() for core in cores)
    assert curve.errors[ranks.index([2, 2, 2])] > 1e-4 * curve.total


def test_loses_no_more_than_its_special_cases_at_any_size():
    weight = smooth_weight(32, 24, 3, 3)
    curve = TensorTrain().factorize(weight).curve
    for name in ("svd", "spatial_svd", "tucker"):
        other = registry.make("decompositions", name).factorize(weight).curve
        for share in (0.15, 0.3, 0.5, 0.7):
            theirs = best_within(other, share, weight.numel())
            # Its outer bonds lie on a grid, so it may miss by a little.
            assert best_within(curve, share, weight.numel()) <= 1.05 * theirs, (name, share)


def test_whole_outer_bonds_give_the_optimal_spatial_svd(generator):
    weight = torch.randn(10, 8, 3, 3, generator=generator)
    curve = TensorTrain().factorize(weight).curve
    spatial = registry.make("decompositions", "spatial_svd").factorize(weight).curve
    table = {tuple(r): i for i, r in enumerate(curve.ranks.tolist())}
    for rank in (1, 4, 11):
        option = table[8, rank, 10]
        assert curve.costs[option] == spatial.costs[rank - 1]
        assert np.isclose(curve.errors[option], spatial.errors[rank - 1], rtol=1e-4)


def test_neighbours_are_merged_where_that_is_smaller():
    decomposition = TensorTrain()
    apart = decomposition.stages((64, 64, 3, 3), (8, 8, 8))
    assert [s.shape for s in apart] == [(8, 64, 1, 1), (8, 8, 3, 1), (8, 8, 1, 3), (64, 8, 1, 1)]
    spatial = decomposition.stages((64, 64, 3, 3), (64, 30, 64))
    assert [s.shape for s in spatial] == [(30, 64, 3, 1), (64, 30, 1, 3)]
    tucker = decomposition.stages((64, 64, 3, 3), (20, 60, 24))
    assert [s.shape for s in tucker] == [(20, 64, 1, 1), (24, 20, 3, 3), (64, 24, 1, 1)]
    _, cost = cheapest_segmentation((64, 3, 3, 64), np.array([[20, 60, 24]]))
    assert int(cost[0]) == sum(s.size for s in tucker)


def test_no_option_merges_across_a_bond_that_was_cut():
    sizes = (64, 3, 3, 64)
    ranks, costs = rank_options(sizes, 16)
    assert len(ranks) < 2000
    assert (np.diff(costs) >= 0).all()
    whole = np.column_stack(
        [0 * costs + 64, np.minimum(3 * ranks[:, 0], 3 * ranks[:, 2]), 0 * costs + 64]
    )
    for bond in range(3):
        freed = ranks.copy()
        freed[:, bond] = whole[:, bond]
        cut = ranks[:, bond] < whole[:, bond]
        # Leaving a cut bond whole always costs something, or the cut would be pointless.
        assert (cheapest_segmentation(sizes, freed)[1] > costs)[cut].all()


def test_options_do_not_depend_on_the_weight(generator):
    # The groups of a grouped layer must agree on a rank.
    first, second = (torch.randn(12, 8, 3, 3, generator=generator) for _ in range(2))
    one, two = (TensorTrain().factorize(w).curve for w in (first, second * 0))
    assert np.array_equal(one.ranks, two.ranks)


def test_equal_ranks_are_offered_for_an_int():
    ranks, _ = rank_options((32, 3, 3, 48), 16)
    offered = {tuple(r) for r in ranks.tolist()}
    assert all((r, r, r) in offered for r in (1, 2, 3, 4))


def test_factors_use_the_rank_they_are_asked_for_after_trim(generator):
    weight = torch.randn(12, 8, 3, 3, generator=generator)
    rank = (4, 6, 5)
    whole = TensorTrain().factorize(weight)
    assert list(rank) in whole.curve.ranks.tolist()
    before = whole.factors(weight, rank)
    after = whole.trim(rank).factors(weight, rank)
    assert all(torch.equal(a, b) for a, b in zip(before.tensors, after.tensors, strict=True))
