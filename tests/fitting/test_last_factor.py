"""Decompositions that know nothing of inputs, on data: their last factor is fitted to it."""

from __future__ import annotations

import pytest
import torch
from data_cases import error, same, train
from models import seeded
from torch import nn

from skcompress import LowRankCompressor, SVDCompressor, TuckerCompressor, count_parameters
from skcompress.decompositions.low_rank_sparse import LowRankSparse
from skcompress.decompositions.svd import SVD
from skcompress.decompositions.tucker import Tucker
from skcompress.errors import NoLayerError
from skcompress.linalg import cholesky
from skcompress.protocols import Metric, WeightDecomposition
from skcompress.protocols.product import multiply_out
from skcompress.protocols.weight_decomposition import LastFactor


@pytest.fixture(scope="module")
def trained(digits):
    """A network that has learnt something: four convolutions, one of them grouped."""
    images, labels = digits
    model = seeded(lambda: nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
        nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 10),
    ))  # fmt: skip
    return train(model, images, labels, lr=3e-3, n_epochs=5)


@pytest.mark.parametrize("pivot", [False, True])
@pytest.mark.parametrize("keep", [0.5, 0.25])
def test_tucker_is_better_with_data_on_new_inputs(keep, pivot, trained, digits):
    seen, new = digits[0][:400], digits[0][1200:]
    plain = TuckerCompressor(keep, pivot=pivot).fit_transform(trained)
    lost = {}
    for way in ("independent", "sequential"):
        compressor = TuckerCompressor(keep, reconstruction=way, pivot=pivot)
        small = compressor.fit_transform(trained, seen)
        lost[way] = error(trained, small, new)
        assert count_parameters(small) == compressor.n_parameters_out_
        assert compressor.n_parameters_out_ <= keep * count_parameters(trained)
        assert same(small, compressor.transform(trained))
    assert lost["independent"] < 0.8 * error(trained, plain, new)
    assert lost["sequential"] < 0.9 * lost["independent"]


def test_pivots_store_the_same_factors(trained, digits):
    seen, new = digits[0][:400], digits[0][1200:]
    ranks = {"3": 10, "6": 6, "9": 12}
    for way in ("independent", "sequential"):
        plain, pivoted = (
            TuckerCompressor(ranks, reconstruction=way, pivot=pivot) for pivot in (False, True)
        )
        small = plain.fit_transform(trained, seen), pivoted.fit_transform(trained, seen)
        assert plain.ranks_ == pivoted.ranks_ == {"3": (10, 10), "6": (6, 6), "9": (12, 12)}
        assert pivoted.n_parameters_out_ < plain.n_parameters_out_
        # Refinement multiplies in float32 and stops before it has converged: rounding in the layers
        # before moves its end, by a small part of what is lost, and to a place just as good.
        lost, other = (error(trained, each, new) for each in small)
        assert lost == pytest.approx(other, rel=2e-3)
        assert error(*small, new) < (1e-4 if way == "independent" else 0.02 * lost)


def test_the_last_factor_of_each_group_is_the_best_there_is(trained, digits):
    # Against float64 least squares of the outputs on what the other factors give.
    seen = digits[0][:300]
    compressor = TuckerCompressor({"6": 5}, reconstruction="independent", recalibrate_norm=False)
    small = compressor.fit_transform(trained, seen)
    assert compressor.plan_["6"].groups == 2
    with torch.no_grad():
        inputs = trained[:6](seen)
        inner = small[6][:-1](inputs).transpose(0, 1).flatten(1).double()
        goal = trained[6](inputs).transpose(0, 1).flatten(1).double()
        got = small[6](inputs).transpose(0, 1).flatten(1).double()
        for half in range(2):
            part = slice(16 * half, 16 * half + 16)
            z = inner.chunk(2)[half]
            z, y = z - z.mean(1, keepdim=True), goal[part] - goal[part].mean(1, keepdim=True)
            best = torch.linalg.lstsq(z.mT, y.mT).solution.mT @ z
            lost = got[part] - goal[part]
            lost = lost - lost.mean(1, keepdim=True)  # the normalisation takes the mean
            assert lost.square().sum() <= (best - y).square().sum() + 1e-3 * y.square().sum()


def test_predicted_errors_are_those_of_the_factors():
    weight = seeded(lambda: torch.randn(12, 8, 3, 3))
    x = seeded(lambda: torch.randn(500, 6) @ torch.randn(6, 72) + 0.1 * torch.randn(500, 72))
    gram = (x.double().mT @ x.double()) / 500
    scale = torch.linspace(0.1, 2.0, 12).double()
    metric = Metric.of_inputs(weight, gram, scale).with_ridge(weight)
    inner = Tucker().factorize(weight)
    curve = inner.curve
    fitted = LastFactor(inner, weight, metric, list(map(curve.rank_at, range(len(curve.costs)))))
    root = cholesky(metric.gram)
    for i in range(len(fitted.curve.costs)):
        rank = fitted.curve.rank_at(i)
        factors = fitted.factors(weight, rank)
        q, p = factors.tensors[0].flatten(1), factors.tensors[2].flatten(1)
        matrix = torch.einsum("op,pqhw,qi->oihw", p, factors.tensors[1], q).flatten(1).double()
        lost = scale[:, None] * ((matrix - weight.flatten(1).double()) @ root)
        measured = float(lost.square().sum())
        assert measured == pytest.approx(float(fitted.curve.errors[i]), abs=1e-5 * metric.energy)


def test_a_sparse_term_keeps_what_it_gives():
    weight = seeded(lambda: torch.randn(10, 16, dtype=torch.float64))
    x = seeded(lambda: torch.randn(16, 200, dtype=torch.float64), seed=1)
    gram, scale = x @ x.mT / 200, torch.linspace(0.5, 2.0, 10).double()
    metric = Metric.of_inputs(weight, gram, scale).with_ridge(weight)
    inner = LowRankSparse(density=0.2).factorize(weight)
    fitted = LastFactor(inner, weight, metric, [2, 4])
    root = cholesky(metric.gram)
    for i, rank in enumerate((2, 4)):
        factors, before = fitted.factors(weight, rank), inner.factors(weight, rank)
        assert torch.equal(factors.sparse.values, before.sparse.values)
        reduced = factors.tensors[0] @ root
        rest = (weight - factors.sparse.weight) @ root
        best = torch.linalg.lstsq(reduced.mT, rest.mT).solution.mT @ reduced
        expected = float((scale[:, None] * (rest - best)).square().sum())
        lost = scale[:, None] * ((multiply_out(factors) - weight) @ root)
        assert float(lost.square().sum()) == pytest.approx(expected, rel=1e-6)
        assert float(fitted.curve.errors[i]) == pytest.approx(expected, rel=1e-6)


class Mirrored(WeightDecomposition):
    """A decomposition of convolutions whose last stage has the kernel."""

    def unsupported(self, shape):
        return None if len(shape) > 2 else "not for layers without a kernel"

    def stages(self, shape, rank):
        return SVD("input").stages(shape, rank)

    def factorize_weight(self, weight):
        return SVD("input").factorize(weight)

    scheme = "input"


class Matrices(SVD):
    """A decomposition of layers without a kernel."""

    def unsupported(self, shape):
        return None if len(shape) == 2 else "not for layers with a kernel"


def test_without_a_pointwise_last_factor_it_is_left_out_and_says_so(trained, digits):
    seen = digits[0][:100]
    convolutions = {"layers": nn.Conv2d}
    with pytest.raises(NoLayerError, match=r"works in the metric of the weights only"):
        LowRankCompressor(Mirrored(), 0.5, **convolutions).fit(trained, seen)
    mixed = seeded(lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 60)))
    compressor = LowRankCompressor((Mirrored(), Matrices()), 0.5).fit(mixed, seen)
    assert list(compressor.ranks_) == ["2"]
    assert "works in the metric of the weights only" in compressor.plan_["0"].reason
    assert LowRankCompressor(Mirrored(), 0.5, metric="weights").fit(trained, seen).ranks_
    competing = LowRankCompressor(("svd", Mirrored()), 0.5).fit(trained, seen)
    assert {p.scheme for p in competing.plan_ if p.scheme} == {"output"}


def test_it_competes_with_those_that_know_inputs(trained, digits):
    seen, new = digits[0][:400], digits[0][1200:]
    alone = SVDCompressor(0.4, scheme="output").fit_transform(trained, seen)
    both = LowRankCompressor(("svd", "tucker"), 0.4)
    small = both.fit_transform(trained, seen)
    assert {p.scheme for p in both.plan_ if p.scheme} >= {"tucker"}
    assert error(trained, small, new) < error(trained, alone, new)


def test_warm_start_factorises_once(trained, digits, monkeypatch):
    seen = digits[0][:200]
    warm = TuckerCompressor(0.4, warm_start=True).fit(trained, seen)
    factorised = []
    inner = Tucker.factorize_weight
    monkeypatch.setattr(
        Tucker, "factorize_weight", lambda self, weight: factorised.append(1) or inner(self, weight)
    )
    for rank in (0.6, 0.3, 0.5):
        small = warm.set_params(rank=rank).fit_transform(trained, seen)
        assert not factorised
        fresh = TuckerCompressor(rank).fit_transform(trained, seen)
        assert factorised
        factorised.clear()
        assert same(small, fresh)


def test_fisher_reaches_it_too(trained, digits):
    seen, new = digits[0][:400], digits[0][1200:]
    settings = {"reconstruction": "independent", "metric": "fisher"}
    small = TuckerCompressor(0.4, **settings).fit_transform(trained, seen)
    plain = TuckerCompressor(0.4).fit_transform(trained)
    assert error(trained, small, new) < 0.8 * error(trained, plain, new)
