from __future__ import annotations

import pytest
import torch
from torch import nn

from skcompress.decompositions.spatial_svd import SpatialSVD
from skcompress.decompositions.svd import SVD
from skcompress.decompositions.tucker import Tucker
from skcompress.linalg import break_even
from skcompress.protocols.product import multiply_out
from skcompress.testing import awkward_weights, check_decomposition

UNFOLDINGS = {
    "output": (SVD("output"), lambda w: w.flatten(1)),
    "input": (SVD("input"), lambda w: w.transpose(0, 1).flatten(1)),
    "spatial": (SpatialSVD(), lambda w: w.permute(0, 3, 1, 2).reshape(w.shape[0] * w.shape[3], -1)),
}


@pytest.mark.parametrize("scheme", UNFOLDINGS)
def test_error_is_the_tail_of_the_unfolding(scheme, generator):
    decomposition, unfold = UNFOLDINGS[scheme]
    weight = torch.randn(10, 7, 3, 5, generator=generator)
    values = torch.linalg.svdvals(unfold(weight).double())
    factorization = decomposition.factorize(weight)
    for rank in (1, 3, 7):
        product = multiply_out(factorization.factors(weight, rank)).double()
        lost = float((product - weight.double()).norm())
        assert lost == pytest.approx(float(values[rank:].norm()), abs=1e-5 * float(weight.norm()))


@pytest.mark.parametrize("scheme", UNFOLDINGS)
def test_factors_are_convolutions_that_follow_each_other(scheme, generator):
    decomposition, _ = UNFOLDINGS[scheme]
    weight = torch.randn(8, 6, 3, 3, generator=generator)
    factors = decomposition.factorize(weight).factors(weight, 4)
    images = torch.randn(2, 6, 9, 9, generator=generator)
    expected = nn.functional.conv2d(images, multiply_out(factors))
    stepwise = images
    for kernel in factors.tensors:
        stepwise = nn.functional.conv2d(stepwise, kernel)
    assert torch.allclose(stepwise, expected, atol=1e-4)


def test_basis_holds_no_more_than_half_of_the_weight():
    for _, weight in awkward_weights():
        held = SVD().factorize(weight)._basis
        rows, columns = weight.flatten(1).shape
        assert held.shape[1] == break_even(rows, columns)
        if min(rows, columns) > 2:
            assert held.numel() <= 0.5 * weight.numel() + max(rows, columns)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 50), (10, 10), (64, 576), (7, 3)])
def test_break_even_is_the_last_rank_that_is_smaller(rows, columns):
    rank = break_even(rows, columns)
    smaller = [r for r in range(1, min(rows, columns) + 1) if r * (rows + columns) < rows * columns]
    assert rank == max(smaller, default=1)


def test_tucker_error_is_that_of_the_two_projections(generator):
    weight = torch.randn(9, 7, 3, 3, generator=generator, dtype=torch.float64)
    left = torch.linalg.svd(weight.flatten(1)).U[:, :4]
    right = torch.linalg.svd(weight.transpose(0, 1).flatten(1)).U[:, :3]
    projected = torch.einsum("oipq,oa,ib,ca,db->cdpq", weight, left, right, left, right)
    curve = Tucker().factorize(weight).curve
    index = next(i for i in range(len(curve.costs)) if curve.rank_at(i) == (4, 3))
    expected = float((weight - projected).norm())
    assert float(curve.errors[index]) ** 0.5 == pytest.approx(expected, rel=1e-6)


def test_tucker_keeps_the_laws():
    check_decomposition(Tucker(), bound=True)


@pytest.mark.parametrize("rank", [(4, 4), (10, 6), (3, 8), (12, 12), (9, 2)])
def test_tucker_factors_are_improved_until_nothing_gains(rank):
    weight = torch.randn(24, 12, 3, 3, generator=torch.Generator().manual_seed(5))
    weight += 0.5 * torch.randn(24, 1, 3, 3, generator=torch.Generator().manual_seed(6))
    plain, ours = Tucker().factorize_weight(weight), Tucker().factorize(weight)
    lost = []
    for made in (plain, ours, ours.trim(rank)):
        product = multiply_out(made.factors(weight, rank)).double()
        lost.append(float((product - weight).square().sum()))
    tensorly = pytest.importorskip("tensorly.decomposition")
    reference, _ = tensorly.partial_tucker(
        weight.double().numpy(), rank=list(rank), modes=[0, 1], n_iter_max=100, tol=1e-10
    )
    core, (outs, ins) = (torch.as_tensor(reference[0]), map(torch.as_tensor, reference[1]))
    best = float((torch.einsum("pqhw,op,iq->oihw", core, outs, ins) - weight).square().sum())
    total = float(weight.square().sum())
    assert lost[1] <= lost[0] + 1e-6 * total
    assert lost[1] <= best + 1e-4 * total
    assert lost[2] == pytest.approx(lost[1], rel=1e-6)
    if rank == (4, 4):
        assert lost[1] < 0.99 * lost[0]


def test_tucker_offers_only_pairs_worth_having_and_the_diagonal(generator):
    curve = Tucker().factorize(torch.randn(12, 8, 3, 3, generator=generator)).curve
    options = list(zip(curve.costs, curve.errors, map(tuple, curve.ranks), strict=True))
    for cost, error, rank in options:
        beaten = any(c <= cost and e < error for c, e, _ in options)
        assert not beaten or rank[0] == rank[1]
    assert {(r, r) for r in range(1, 9)} <= {rank for _, _, rank in options}


def test_tucker_of_a_matrix_is_its_svd(generator):
    weight = torch.randn(9, 14, generator=generator)
    ours, theirs = Tucker().factorize(weight).curve, SVD().factorize(weight).curve
    assert ours.errors == pytest.approx(theirs.errors)
    assert ours.costs.tolist() == theirs.costs.tolist()
