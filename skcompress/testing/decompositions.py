"""Laws of decompositions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..protocols import Curve, Decomposition, Factorization, Metric, Rank
from ..protocols.product import multiply_out
from .cases import awkward_weights
from .estimators import check_unchanged, checked_estimator
from .spaces import corners


def check_decomposition(
    plugin: Decomposition | type[Decomposition],
    *,
    exact: bool = True,
    bound: bool = False,
    tolerance: float = 1e-5,
) -> None:
    """Check a decomposition on awkward weights.

    exact : whether the highest offered rank reproduces the weight, and predicted errors
        equal measured ones. False for iterative methods: then the prediction must be
        right to 10 % of the weight's norm, and nothing is asked of the highest rank.
    bound : whether predicted errors are bounds, which measured ones may stay below
    tolerance : of errors, relative to the norm of the weight

    Laws: the weight is untouched; costs, shapes and `stages` agree with the factors; the
    predicted error is the measured one; error never grows along the ranks that no
    other beats; the full rank is exact; the same call gives the same factors; `trim` leaves
    the factorisation as it was. In a metric the same holds for outputs, on inputs with a second
    moment far from white.
    What its `search_space` declares works.
    """
    decomposition: Decomposition = checked_estimator(plugin, Decomposition)
    name = type(decomposition).__name__
    n_checked = 0
    for case, weight in awkward_weights():
        if decomposition.unsupported(weight.shape) is not None:
            continue
        n_checked += 1
        before = weight.clone()
        factorization = decomposition.factorize(weight)
        curve = factorization.curve
        where = f"{name} on {case}"
        _check_curve(where, curve, weight, tolerance)
        for rank in _some_ranks(curve):
            _check_factors(where, decomposition, weight, rank, exact, bound, tolerance)
        if exact:
            last = float(curve.errors[-1])
            limit = (tolerance * float(weight.norm())) ** 2
            assert last <= limit + 1e-30, f"{where}: the highest rank loses {last:.3g}"
        _check_regression(where, decomposition, weight)
        check_unchanged(where, "factorize borrows the weight", before, weight)
    assert n_checked, f"{name} supports none of the weights that the check has"
    _check_corners(decomposition, tolerance)


def _check_corners(decomposition: Decomposition, tolerance: float) -> None:
    weights = dict(awkward_weights())
    for where, variant, _ in corners(decomposition):
        for case in ("convolution", "wide (6, 40)"):
            if variant.unsupported(weights[case].shape) is None:
                curve = variant.factorize(weights[case]).curve
                _check_curve(f"{where} on {case}", curve, weights[case], tolerance)


def _check_regression(where: str, decomposition: Decomposition, weight: Tensor) -> None:
    """Check predicted mean squared errors of the outputs, to 1 % of what there is."""
    n = weight[0].numel()
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(n, n, generator=generator, dtype=torch.float64)
    mixing *= torch.logspace(0, -1, n, dtype=torch.float64)
    metric = Metric.of_inputs(weight, mixing @ mixing.mT).with_ridge(weight)
    whole = decomposition.factorize(weight, metric)
    curve = whole.curve
    if not len(curve.costs):  # no rank can be fitted to inputs
        return
    for rank in _some_ranks(curve):
        index = next(i for i in range(len(curve.costs)) if curve.rank_at(i) == rank)
        factors = whole.trim(rank).factors(weight, rank)
        planned = decomposition.stages(tuple(weight.shape), rank)
        assert factors.stages == planned, f"{where}: in a metric, other factors than stages() says"
        lost = (multiply_out(factors) - weight).flatten(1).double()
        measured = float((lost @ metric.gram * lost).sum())
        predicted = float(curve.errors[index])
        slack = 0.01 * metric.energy + 1e-30
        assert abs(measured - predicted) <= slack, (
            f"{where} at rank {rank}: outputs lose {measured}, predicted {predicted}"
        )


def _check_curve(where: str, curve: Curve, weight: Tensor, tolerance: float) -> None:
    n = len(curve.costs)
    assert n > 0, f"{where}: offers no rank"
    assert len(curve.ranks) == len(curve.errors) == n, f"{where}: columns differ in length"
    assert (np.diff(curve.costs) >= 0).all(), f"{where}: costs are not ascending"
    assert (curve.errors >= 0).all(), f"{where}: a negative error"
    if curve.ranks.ndim == 1:
        growth = np.diff(curve.errors) / max(curve.total, 1e-30)
        assert (growth <= tolerance).all(), f"{where}: the error grows with the rank"
    norm = float(weight.double().norm())
    assert abs(curve.total**0.5 - norm) <= tolerance * norm + 1e-30, f"{where}: wrong total"


def _check_factors(
    where: str,
    decomposition: Decomposition,
    weight: Tensor,
    rank: Rank,
    exact: bool,
    bound: bool,
    tolerance: float,
) -> None:
    where = f"{where} at rank {rank}"
    factorization = decomposition.factorize(weight)
    curve = factorization.curve
    index = next(i for i in range(len(curve.costs)) if curve.rank_at(i) == rank)
    factors = factorization.factors(weight, rank)
    stored = sum(t.numel() for t in factors.stored)
    assert stored == curve.costs[index], f"{where}: stores {stored}, not {curve.costs[index]}"
    planned = decomposition.stages(tuple(weight.shape), rank)
    assert factors.stages == planned, f"{where}: {factors.stages} where stages() says {planned}"
    assert all(t.dtype == weight.dtype for t in factors.stored), f"{where}: the dtype changes"

    product = multiply_out(factors)
    assert product.shape == weight.shape, f"{where}: multiplies out to {tuple(product.shape)}"
    norm = float(weight.double().norm())
    measured = float((product.double() - weight.double()).norm())
    predicted = float(curve.errors[index]) ** 0.5
    slack = (tolerance if exact else 0.1) * norm + 1e-30
    off = measured - predicted if bound else abs(measured - predicted)
    assert off <= slack, f"{where}: loses {measured}, predicted {predicted}"

    again = decomposition.factorize(weight).trim(rank).factors(weight, rank)
    for a, b in zip(factors.stored, again.stored, strict=True):
        assert torch.allclose(a, b), f"{where}: a second call, or trim, gives other factors"
    _check_trim(where, factorization, weight, rank)


def _check_trim(where: str, factorization: Factorization, weight: Tensor, rank: Rank) -> None:
    """Other fits may go on to use what one of them trims for itself."""
    curve = factorization.curve
    ranks = _some_ranks(curve)
    before = [factorization.factors(weight, r).stored for r in ranks]
    factorization.trim(rank)
    assert factorization.curve is curve, f"{where}: trim changes the curve"
    try:
        after = [factorization.factors(weight, r).stored for r in ranks]
    except Exception as error:
        raise AssertionError(f"{where}: trim leaves no other rank, where it is to copy") from error
    for a, b in zip(before, after, strict=True):
        same = all(map(torch.equal, a, b))
        assert same, f"{where}: trim changes the factorisation, where it is to copy"


def _some_ranks(curve: Curve) -> list[Rank]:
    n = len(curve.costs)
    return [curve.rank_at(i) for i in sorted({0, n // 4, n // 2, n - 1})]
