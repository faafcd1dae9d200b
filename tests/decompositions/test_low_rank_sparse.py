"""W = U V + S: what is claimed against what is measured in float64, and against plain SVD."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import random, seeded
from pairwise import pairwise
from sklearn.utils._param_validation import InvalidParameterError
from torch import nn

from skcompress import LowRankCompressor, count_parameters
from skcompress.decompositions.low_rank_sparse import LowRankSparse
from skcompress.decompositions.svd import SVD
from skcompress.errors import BudgetError
from skcompress.fitting.refining import refined
from skcompress.protocols import Dense, Metric
from skcompress.protocols.product import multiply_out
from skcompress.storages.pivot import Pivot
from skcompress.testing import awkward_weights, check_decomposition, check_storage


def metric_of(weight, seed=7, condition=1, output=None):
    n = weight[0].numel()
    scales = torch.logspace(0, -condition, n, dtype=torch.float64)
    mixing = random(n, n, seed=seed) * scales
    return Metric.of_inputs(weight, mixing @ mixing.mT, output).with_ridge(weight)


def measured(factors, weight, metric=None):
    lost = (multiply_out(factors).double() - weight.double()).flatten(1)
    if metric is None:
        return float(lost.square().sum())
    seen = metric.seen(lost)
    return float((seen @ metric.gram * seen).sum())


def with_outliers(rows=24, columns=40, rank=4, n=20):
    low = random(rows, rank) @ random(rank, columns, seed=2)
    places = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(3))[:n]
    low.flatten()[places] += 6 * random(n, seed=4).sign()
    return low


# Nearly none and nearly all; what is there by default keeps them in laws/test_plugins.py.
@pytest.mark.parametrize("density", [0.02, 0.9])
def test_keeps_the_laws(density):
    check_decomposition(LowRankSparse(density=density, n_iter=2))


def test_keeps_the_laws_with_pivots():
    check_storage(Pivot(), LowRankSparse())


OUTPUTS = {
    "alike": lambda out: None,
    "by channel": lambda out: torch.linspace(1, 5, out, dtype=torch.float64),
    "mixed": lambda out: random(out, out, seed=8),
}


@pairwise(
    shape=[(12, 30), (30, 12), (10, 6, 3, 3), (1, 9), (9, 1)],
    condition=[0, 2, 6],
    dtype=[torch.float32, torch.float64],
    output=OUTPUTS,
)
def test_claimed_errors_are_the_measured_ones(shape, condition, dtype, output):
    weight = random(*shape, dtype=dtype)
    metric = metric_of(weight, condition=condition, output=output(shape[0]))
    made = LowRankSparse(density=0.1).factorize(weight, metric)
    assert (np.diff(made.curve.errors) <= 1e-12 * made.curve.total).all()
    for i, claimed in enumerate(made.curve.errors):
        rank = made.curve.rank_at(i)
        factors = made.factors(weight, rank)
        assert sum(t.numel() for t in factors.stored) == made.curve.costs[i]
        found = measured(factors, weight, metric)
        assert abs(found - claimed) <= 1e-4 * claimed + 1e-6 * made.curve.total


@pytest.mark.parametrize("case", dict(awkward_weights()))
def test_claimed_errors_in_the_frobenius_norm(case):
    weight = dict(awkward_weights())[case]
    made = LowRankSparse().factorize(weight)
    for i, claimed in enumerate(made.curve.errors):
        found = measured(made.factors(weight, made.curve.rank_at(i)), weight)
        assert found**0.5 == pytest.approx(claimed**0.5, rel=1e-4, abs=2e-6 * float(weight.norm()))


@pytest.mark.parametrize("with_inputs", [False, True])
def test_loses_less_than_svd_of_as_many_numbers(with_inputs):
    weight = with_outliers()
    metric = metric_of(weight) if with_inputs else None

    def curve_of(decomposition):
        return decomposition.factorize(weight, metric).curve

    ours, plain = curve_of(LowRankSparse(density=0.05)), curve_of(SVD(every_rank=True))
    compared = 0
    for cost, error in zip(ours.costs, ours.errors, strict=True):
        affordable = plain.errors[plain.costs <= cost]
        if len(affordable) and cost < weight.numel():
            compared += 1
            assert error < affordable.min()
    assert compared > 5
    # At the rank of what is under the outliers, against one rank more.
    assert ours.errors[3] < 0.1 * plain.errors[4]


def test_without_a_term_it_is_svd():
    weight = random(12, 5, 3, 3, dtype=torch.float32)
    ours, plain = LowRankSparse(density=0), SVD()
    assert not ours.adds_sparse
    made, expected = ours.factorize(weight), plain.factorize(weight)
    assert np.array_equal(made.curve.costs, expected.curve.costs)
    assert np.array_equal(made.curve.errors, expected.curve.errors)
    for rank in (1, 4, 12):
        factors = made.factors(weight, rank)
        assert factors.stages == ours.stages(weight.shape, rank) == plain.stages(weight.shape, rank)
        for a, b in zip(factors.stored, expected.factors(weight, rank).stored, strict=True):
            assert torch.equal(a, b)
    metric = metric_of(weight)
    np.testing.assert_allclose(
        ours.factorize(weight, metric).curve.errors, plain.factorize(weight, metric).curve.errors
    )


def test_a_density_that_rounds_to_nothing_stores_nothing():
    weight = random(4, 5)
    made = LowRankSparse(density=0.02).factorize(weight)
    assert made.factors(weight, 2).sparse is None
    assert made.curve.costs.tolist() == SVD().factorize(weight).curve.costs.tolist()


def test_full_rank_loses_nothing():
    weight = random(12, 20, dtype=torch.float32)
    made = LowRankSparse(density=0.3).factorize(weight)
    assert made.curve.full_rank == made.curve.rank_at(-1) == 12
    assert measured(made.factors(weight, 12), weight) < 1e-10 * float(weight.square().sum())


def test_what_a_low_rank_weight_does_not_need_is_stored_nonetheless():
    weight = random(20, 2) @ random(2, 30, seed=2)
    for case in (weight, torch.zeros(20, 30, dtype=torch.float64)):
        made = LowRankSparse(density=0.1).factorize(case)
        factors = made.factors(case, 2)
        assert len(factors.sparse.values) == len(factors.sparse.positions.unique()) == 60
        assert made.curve.errors[1] <= 1e-12 * max(made.curve.total, 1e-30)


def test_one_rank_alone_is_as_good_as_among_others():
    weight = random(24, 40)
    metric = metric_of(weight)
    decomposition = LowRankSparse()
    whole = decomposition.factorize(weight, metric)
    for rank in range(1, len(whole.curve.costs) + 1):
        alone = decomposition.factorize_at(weight, metric, rank)
        error = measured(alone.factors(weight, rank), weight, metric)
        assert error == pytest.approx(alone.curve.errors[rank - 1], rel=1e-6)
        assert error <= 1.25 * whole.curve.errors[rank - 1]
    middle = len(whole.curve.costs) * 5 // 8  # between two of the ranks that have their own term
    alone = decomposition.factorize_at(weight, metric, middle)
    assert alone.curve.errors[middle - 1] < whole.curve.errors[middle - 1]


def test_outputs_that_the_weight_does_not_give_are_aimed_at():
    weight = random(10, 16)
    inputs = random(16, 300, seed=5) * torch.logspace(0, -1, 16, dtype=torch.float64)[:, None]
    drifted = inputs + 0.3 * random(16, 300, seed=6)
    outputs = weight @ inputs
    energy = float(outputs.square().sum()) / 300
    metric = Metric(Dense(drifted @ drifted.mT / 300), outputs @ drifted.mT / 300, energy)
    unaware = Metric.of_inputs(weight, metric.gram)

    def lost(factors):
        return float((multiply_out(factors) @ drifted - outputs).square().sum()) / 300

    for rank in (1, 3, 5):
        made = LowRankSparse(density=0.2).factorize(weight, metric)
        factors = made.factors(weight, rank)
        assert lost(factors) == pytest.approx(made.curve.errors[rank - 1], rel=1e-5)
        plain = LowRankSparse(density=0.2).factorize(weight, unaware).factors(weight, rank)
        assert lost(factors) < lost(plain)


def test_all_its_numbers_are_refined_together():
    weight = random(14, 20)
    metric = metric_of(weight, condition=2)
    closed = LowRankSparse().factorize(weight, metric)
    better = refined(closed.factors(weight, 3), metric)
    before = closed.factors(weight, 3)
    assert torch.equal(better.sparse.positions, before.sparse.positions)
    assert not torch.equal(better.sparse.values, before.sparse.values)
    assert measured(better, weight, metric) < 0.999 * measured(before, weight, metric)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"density": 1.0}, "'density' parameter of LowRankSparse"),
        ({"density": -0.1}, "'density'"),
        ({"density": "much"}, "'density'"),
        ({"n_iter": 0}, "'n_iter' parameter of LowRankSparse"),
        ({"n_iter": 1.5}, "'n_iter'"),
    ],
)
def test_bad_parameters_are_named(parameters, words):
    bad = LowRankSparse(**parameters)
    with pytest.raises(InvalidParameterError, match=words):
        bad.factorize(random(8, 9))
    with pytest.raises(InvalidParameterError, match=words):
        LowRankCompressor(bad).fit(nn.Linear(8, 9))


def make_model():
    return seeded(lambda: nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.Conv2d(24, 32, 3, groups=2), nn.ReLU(), nn.Conv2d(32, 32, 3, stride=2), nn.Flatten(),
        nn.Linear(32 * 4, 40), nn.ReLU(), nn.Linear(40, 10),
    ).eval())  # fmt: skip


@pytest.mark.parametrize("decomposition", [
    "low_rank_sparse",
    ["svd", "low_rank_sparse", LowRankSparse(density=0.03), "spatial_svd"],
])  # fmt: skip
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pivot": True},
        {"fold_norm": True},
        {"rank": 3},
        {"metric": "fisher", "reconstruction": "independent"},
    ],
)
def test_budgets_are_exact(decomposition, settings):
    model, images = make_model(), random(32, 3, 8, 8, dtype=torch.float32)
    fitted = LowRankCompressor(decomposition, **{"rank": 0.4, **settings}).fit(model, images)
    small = fitted.transform(model)
    assert count_parameters(small) == fitted.n_parameters_out_ <= count_parameters(model)
    skeleton = fitted.transform(make_model().to("meta")).to_empty(device="cpu").eval()
    skeleton.load_state_dict(small.state_dict())
    assert torch.equal(skeleton(images), small(images))
    back = fitted.inverse_transform(small)
    assert torch.allclose(back(images), small(images), atol=1e-5)


def test_a_budget_that_the_terms_alone_exceed_is_refused():
    with pytest.raises(BudgetError):
        LowRankCompressor(LowRankSparse(density=0.3), rank=0.2).fit(make_model())


def test_no_flops_are_saved_and_none_are_claimed():
    model, images = make_model(), random(4, 3, 8, 8, dtype=torch.float32)
    fitted = LowRankCompressor("low_rank_sparse", rank=1.0, cost="flops").fit(model, images)
    assert not fitted.ranks_
    assert {p.reason for p in fitted.plan_ if len(p.shape) > 1} == {
        "no rank makes it smaller and faster"
    }
    both = LowRankCompressor(["svd", "low_rank_sparse"], rank=0.6, cost="flops").fit(model, images)
    assert {p.scheme for p in both.plan_ if p.rank} == {"output"}
