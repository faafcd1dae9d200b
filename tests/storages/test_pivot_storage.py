"""The same factors in fewer numbers: against the factors stored as ever, in float64."""

from __future__ import annotations

import pytest
import torch
from models import distance, random

from skcompress.decompositions.spatial_svd import SpatialSVD
from skcompress.decompositions.svd import SVD
from skcompress.decompositions.tucker import Tucker
from skcompress.layers.chain import merge_groups, merge_stages
from skcompress.linalg import break_even
from skcompress.protocols import Factors, Stage
from skcompress.protocols.product import multiply_out
from skcompress.storages.pivot import BOUND, Pivot, pivot_rows, pivoted_factors
from skcompress.testing import awkward_weights, check_storage

PLAIN = {"output": SVD(), "input": SVD("input"), "spatial": SpatialSVD(), "tucker": Tucker()}
every_decomposition = pytest.mark.parametrize("plain", PLAIN.values(), ids=PLAIN)


def cases(*shapes):
    """Every shape with the unfoldings that are different for it."""
    return [(s, u) for s in shapes for u in ("output", "input") if not SVD(u).unsupported(s)]


def graded(m, r, condition):
    scales = torch.logspace(0, -condition, r, dtype=torch.float64)
    return torch.linalg.qr(random(m, r)).Q * scales


MATRICES = {
    "tall": random(60, 7),
    "nearly square": random(60, 50, seed=5),
    "square": random(9, 9),
    "one column": random(5, 1),
    "one number": random(1, 1),
    "dependent columns": random(30, 3) @ random(3, 8, seed=2),
    "zero": torch.zeros(12, 4, dtype=torch.float64),
    "graded": graded(50, 20, 14),
    "graded, mixed": graded(50, 20, 14) @ random(20, 20, seed=3),
    "hilbert": 1 / (torch.arange(40)[:, None] + torch.arange(15) + 1).double(),
    "huge": 1e30 * random(20, 5),
    "tiny": 1e-30 * random(20, 5),
    "float32": random(20, 5, dtype=torch.float32),
    "non-contiguous": random(5, 20).mT,
}


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_rows_are_bounded_combinations_of_the_pivots(matrix):
    m, r = matrix.shape
    order, coefficients = pivot_rows(matrix)
    assert sorted(order.tolist()) == list(range(m))
    assert coefficients.shape == (m - r, r)
    assert coefficients.dtype == torch.float64
    assert not (coefficients.abs() > BOUND).any()
    matrix = matrix.double()
    lost = matrix[order[r:]] - coefficients @ matrix[order[:r]]
    assert float(lost.norm()) <= 1e-13 * float(matrix.norm())


def test_elimination_alone_would_not_bound_them(monkeypatch):
    matrices = [random(60, 50, seed=seed) for seed in range(20)]
    assert max(pivot_rows(m)[1].abs().max() for m in matrices) <= BOUND
    monkeypatch.setattr("skcompress.storages.pivot.BOUND", torch.inf)
    assert max(pivot_rows(m)[1].abs().max() for m in matrices) > BOUND


@every_decomposition
def test_keeps_the_laws(plain):
    check_storage(Pivot(), plain)


@every_decomposition
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_product_is_that_of_the_factors_stored_as_ever(plain, dtype):
    for case, weight in awkward_weights(dtype):
        if plain.unsupported(weight.shape):
            continue
        whole = plain.factorize(weight)
        for i in range(0, len(whole.curve.costs), 3):
            rank = whole.curve.rank_at(i)
            reference = whole.factors(weight, rank)
            exact = multiply_out(Factors(tuple(t.double() for t in reference.tensors),
                                         reference.groups))  # fmt: skip
            ours = multiply_out(Pivot().stored(reference))
            tolerance = 1e-5 if dtype == torch.float32 else 1e-13
            assert float((ours - exact).norm()) <= tolerance * float(weight.norm()), (case, rank)


@pytest.mark.parametrize("condition", [4, 8, 16])
@pytest.mark.parametrize(
    ("shape", "unfolding"),
    cases((40, 60), (60, 40), (30, 10, 3, 3), (10, 30, 3, 3)),
)
def test_ill_conditioned_weights_lose_nothing_more(shape, unfolding, condition):
    rows = shape[0]
    matrix = random(*shape).flatten(1)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.logspace(0, -condition, len(v), dtype=torch.float64)
    weight = (u * values @ v).reshape(rows, *shape[1:]).float()
    plain = SVD(unfolding)
    for rank in (1, 5, 10):
        exact = multiply_out(plain.factorize(weight.double()).factors(weight.double(), rank))
        ours = Pivot().stored(plain.factorize(weight).factors(weight, rank))
        assert distance(multiply_out(ours).double(), exact) < 1e-5
        largest = max(float(t.abs().max()) for t in ours.tensors)
        assert largest <= max(BOUND, float(weight.abs().max())) * (1 + 1e-5) * shape[-1] ** 2


@pytest.mark.parametrize(
    ("shape", "unfolding"),
    cases((20, 30), (30, 20), (12, 8, 3, 3), (8, 12, 1, 1), (16, 1, 3, 3)),
)
def test_every_rank_below_the_full_one_saves_numbers(shape, unfolding):
    weight = random(*shape, dtype=torch.float32)
    plain = SVD(unfolding)
    curve = plain.factorize(weight).curve
    chains = [plain.stages(shape, rank) for rank in curve.ranks.tolist()]
    costs = Pivot().numbers(curve.costs, chains)
    matrix = weight.flatten(1) if unfolding == "output" else weight.transpose(0, 1).flatten(1)
    rows, columns = matrix.shape
    assert costs.tolist() == [r * (rows + columns - r) for r in curve.ranks.tolist()]
    assert (costs[:-1] < weight.numel()).all()
    assert len(curve.ranks) == min(rows, columns)


def test_tucker_leaves_both_identities_out():
    weight = random(12, 8, 3, 3)
    assert Pivot().stages(Tucker().stages(weight.shape, (5, 4))) == (
        Stage((4, 4, 1, 1), pivots=1),
        Stage((5, 4, 3, 3)),
        Stage((7, 5, 1, 1), pivots=0),
    )
    assert Pivot().stages(Tucker().stages(weight.shape, (12, 4))) == (
        Stage((4, 4, 1, 1), pivots=1),
        Stage((12, 4, 3, 3)),
    )


def test_where_no_factor_is_without_a_kernel_nothing_changes():
    weight = random(12, 8, 3, 3)
    factors = SpatialSVD().factorize(weight).factors(weight, 3)
    assert Pivot().stages(factors.stages) == factors.stages
    assert Pivot().stored(factors).pivots == ()


def test_a_neighbour_with_groups_cannot_take_up_anything():
    depthwise = Factors(
        (random(4, 6, 1), random(4, 1, 3, seed=2), random(9, 4, 1, seed=3)), (1, 4, 1)
    )
    kept = pivoted_factors(depthwise)
    assert kept.pivots == ()
    assert kept.stages == depthwise.stages


def test_directions_are_kept_only_where_pivots_need_them():
    weight = random(20, 30, dtype=torch.float32)
    assert SVD().factorize(weight)._basis.shape[1] == break_even(20, 30)
    assert SVD(every_rank=True).factorize(weight)._basis.shape[1] == 20


@pytest.mark.parametrize("unfolding", ["output", "input"])
def test_groups_are_numbered_one_after_another(unfolding):
    weights = [random(7, 5, 3, seed=seed) for seed in range(3)]
    made = [Pivot().stored(SVD(unfolding).factorize(w).factors(w, 3)) for w in weights]
    merged = merge_groups(made)
    assert merged.stages == merge_stages(made[0].stages, 3)
    assert sum(t.numel() for t in merged.tensors) == sum(s.size for s in merged.stages)
    reference = torch.cat([multiply_out(f) for f in made])
    assert distance(multiply_out(merged, 3), reference) < 1e-13


def test_is_repeatable():
    weight = random(24, 30, dtype=torch.float32)
    one, other = (Pivot().stored(SVD().factorize(weight).factors(weight, 11)) for _ in range(2))
    assert all(map(torch.equal, one.tensors, other.tensors))
    assert torch.equal(one.pivots[1].order, other.pivots[1].order)
