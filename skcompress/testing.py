"""Conformance checks: the laws that every plugin keeps, ours and everybody's.

A plugin package calls these in its own tests::

    def test_mine():
        skcompress.testing.check_decomposition(Mine())

Each raises AssertionError that names the law, the plugin and the case.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, clone
from torch import Tensor, nn

from .factorized.chain import multiply_out
from .metrics import count_parameters
from .protocols import (
    Allocation,
    Compressor,
    Criterion,
    Curve,
    Decomposition,
    Layer,
    Rank,
    Regularizer,
    Spectrum,
)

__all__ = [
    "awkward_weights",
    "check_allocation",
    "check_compressor",
    "check_criterion",
    "check_decomposition",
    "check_regularizer",
    "small_models",
]


def awkward_weights(dtype: torch.dtype = torch.float32) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, weight) of the shapes and spectra that break careless code."""
    g = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    def with_spectrum(rows: int, columns: int, values: Tensor) -> Tensor:
        k = len(values)
        left = torch.linalg.qr(torch.randn(rows, k, generator=g, dtype=torch.float64)).Q
        right = torch.linalg.qr(torch.randn(columns, k, generator=g, dtype=torch.float64)).Q
        return ((left * values) @ right.mT).to(dtype)

    yield "row (1, 9)", rand(1, 9)
    yield "column (9, 1)", rand(9, 1)
    yield "square (12, 12)", rand(12, 12)
    yield "wide (6, 40)", rand(6, 40)
    yield "tall (40, 6)", rand(40, 6)
    yield "rank one", rand(10, 1) @ rand(1, 14)
    yield "all zero", torch.zeros(8, 10, dtype=dtype)
    halving = 0.5 ** torch.arange(20, dtype=torch.float64)
    yield "spectrum 0.5^i", with_spectrum(24, 20, halving)
    yield "repeated singular values", with_spectrum(16, 12, torch.ones(12, dtype=torch.float64))
    yield "rank deficient", rand(20, 3) @ rand(3, 15)
    yield "non-contiguous", rand(14, 10).mT
    yield "convolution", rand(12, 8, 3, 3)
    yield "convolution, non-contiguous", rand(8, 12, 3, 3).transpose(0, 1)
    yield "1 x 1 convolution", rand(12, 8, 1, 1)
    yield "one input channel", rand(16, 1, 3, 3)
    yield "1-D convolution", rand(10, 6, 5)
    yield "3-D convolution", rand(8, 6, 3, 2, 3)


# --- shared by all kinds ---------------------------------------------------------------


def _check_estimator(estimator: BaseEstimator, kind: type) -> None:
    name = type(estimator).__name__
    assert isinstance(estimator, kind), f"{name} is not a subclass of {kind.__name__}"
    twin = clone(estimator)
    given, copied = estimator.get_params(deep=False), twin.get_params(deep=False)
    assert given.keys() == copied.keys(), f"{name}: clone has other parameters"
    assert repr(estimator) == repr(twin), f"{name}: repr changes under clone"
    pickle.loads(pickle.dumps(estimator))


def _unchanged(name: str, law: str, before: Tensor, after: Tensor) -> None:
    assert torch.equal(before, after), f"{name}: {law}: the weight was changed"


def _some_ranks(curve: Curve) -> list[Rank]:
    n = len(curve.costs)
    return [curve.rank_at(i) for i in sorted({0, n // 4, n // 2, n - 1})]


# --- decompositions --------------------------------------------------------------------


def check_decomposition(
    decomposition: Decomposition, *, exact: bool = True, tolerance: float = 1e-5
) -> None:
    """Check a decomposition on awkward weights.

    exact : whether the highest offered rank reproduces the weight, and predicted errors
        equal measured ones. False for iterative methods: then the prediction must be
        right to 10 % of the weight's norm, and nothing is asked of the highest rank.
    tolerance : of errors, relative to the norm of the weight

    Laws: the weight is untouched; costs, shapes and `stages` agree with the factors; the
    predicted error is the measured one; error never grows along the ranks that no
    other beats; the full rank is exact; the same call gives the same factors.
    """
    _check_estimator(decomposition, Decomposition)
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
            _check_factors(where, decomposition, weight, rank, exact, tolerance)
        if exact:
            last = float(curve.errors[-1])
            limit = (tolerance * float(weight.norm())) ** 2
            assert last <= limit + 1e-30, f"{where}: the highest rank loses {last:.3g}"
        _unchanged(where, "factorize borrows the weight", before, weight)
    assert n_checked, f"{name} supports none of the weights that the check has"


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
    tolerance: float,
) -> None:
    where = f"{where} at rank {rank}"
    factorization = decomposition.factorize(weight)
    curve = factorization.curve
    index = next(i for i in range(len(curve.costs)) if curve.rank_at(i) == rank)
    factors = factorization.factors(weight, rank)
    stored = sum(t.numel() for t in factors.tensors)
    assert stored == curve.costs[index], f"{where}: stores {stored}, not {curve.costs[index]}"
    planned = decomposition.stages(tuple(weight.shape), rank)
    assert factors.stages == planned, f"{where}: {factors.stages} where stages() says {planned}"
    assert all(t.dtype == weight.dtype for t in factors.tensors), f"{where}: the dtype changes"

    product = multiply_out(factors)
    assert product.shape == weight.shape, f"{where}: multiplies out to {tuple(product.shape)}"
    norm = float(weight.double().norm())
    measured = float((product.double() - weight.double()).norm())
    predicted = float(curve.errors[index]) ** 0.5
    slack = (tolerance if exact else 0.1) * norm + 1e-30
    assert abs(measured - predicted) <= slack, f"{where}: loses {measured}, predicted {predicted}"

    again = decomposition.factorize(weight).trim(rank).factors(weight, rank)
    for a, b in zip(factors.tensors, again.tensors, strict=True):
        assert torch.allclose(a, b), f"{where}: a second call, or trim, gives other factors"


# --- allocations -----------------------------------------------------------------------


def check_allocation(allocation: Allocation) -> None:
    """Check an allocation on a small synthetic model.

    Laws: one answer per layer; a choice names an existing option and never costs more
    than dense; the same call gives the same answer; the layers are untouched; a layer
    that cannot get smaller stays dense.
    """
    _check_estimator(allocation, Allocation)
    name = type(allocation).__name__
    layers = _synthetic_layers()
    before = copy.deepcopy(layers)
    for rank in (1.0, 0.6, 0.3):
        choices = allocation.allocate(layers, rank, 10)
        where = f"{name} at rank {rank}"
        assert len(choices) == len(layers), f"{where}: {len(choices)} answers for {len(layers)}"
        for layer, choice in zip(layers, choices, strict=True):
            if choice is not None:
                curve = layer.curves[choice.curve]
                assert 0 <= choice.option < len(curve.costs), f"{where}: no such option"
                cost = curve.costs[choice.option]
                assert cost <= layer.dense, f"{where}: {layer.name} gets larger than dense"
        assert choices[-1] is None, f"{where}: a layer that cannot get smaller was cut"
        assert choices == allocation.allocate(layers, rank, 10), f"{where}: does not repeat"
    for layer, old in zip(layers, before, strict=True):
        for curve, was in zip(layer.curves, old.curves, strict=True):
            same = np.array_equal(curve.costs, was.costs) and np.array_equal(curve.errors, was.errors)
            assert same, f"{name} changes the curves it is given"


def _synthetic_layers() -> list[Layer]:
    rng = np.random.default_rng(0)
    layers = []
    for number, (rows, columns) in enumerate([(32, 48), (64, 32), (16, 90), (2, 2)]):
        values = np.sort(rng.exponential(size=min(rows, columns)))[::-1]
        ranks = np.arange(1, len(values) + 1)
        tails = np.append(np.cumsum(values[::-1] ** 2)[::-1][1:], 0.0)
        curve = Curve("svd", ranks, ranks * (rows + columns), tails, float((values**2).sum()),
                      len(values), (Spectrum(values, (rows, columns)),))  # fmt: skip
        layers.append(Layer(f"layer{number}", rows * columns, (curve,)))
    return layers


# --- regularizers ----------------------------------------------------------------------


def check_regularizer(regularizer: Regularizer) -> None:
    """Check a regularizer on awkward weights and on a model.

    Laws: `penalty` is a finite non-negative scalar with a finite gradient, also at zero,
    rank-deficient and repeated spectra; its gradient is the derivative (gradcheck in
    float64 at generic weights); on a model it is `weight` times a sum in which shared
    weights count once; strength zero gives zero.
    """
    _check_estimator(regularizer, Regularizer)
    name = type(regularizer).__name__
    for case, weight in awkward_weights():
        leaf = weight.clone().requires_grad_()
        value = regularizer.penalty(leaf)
        assert value.dim() == 0, f"{name} on {case}: penalty of shape {tuple(value.shape)}"
        assert torch.isfinite(value) and value >= 0, f"{name} on {case}: penalty {float(value)}"
        if value.requires_grad:
            value.backward()
            assert torch.isfinite(leaf.grad).all(), f"{name} on {case}: gradient not finite"  # type: ignore[arg-type]
        _unchanged(f"{name} on {case}", "penalty borrows the weight", weight, leaf.detach())
    generator = torch.Generator().manual_seed(1)
    for shape in ((5, 7), (7, 5), (4, 3, 3, 2)):
        leaf = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(regularizer.penalty, leaf), f"{name}: gradcheck {shape}"

    shared = nn.Linear(6, 6)
    twice = nn.Sequential(shared, nn.ReLU(), shared)
    once = float(regularizer(nn.Sequential(shared)).detach())
    both = float(regularizer(twice).detach())
    assert abs(once - both) <= 1e-6 * max(1.0, once), f"{name} counts a shared weight twice"
    off = clone(regularizer).set_params(weight=0.0)
    assert float(off(twice).detach()) == 0.0, f"{name} with weight=0 is not zero"


# --- criteria --------------------------------------------------------------------------


def check_criterion(criterion: Criterion) -> None:
    """Check a pruning criterion on awkward weights.

    Laws: scores have the weight's shape, are finite and non-negative, repeat, and leave
    the weight untouched.
    """
    _check_estimator(criterion, Criterion)
    name = type(criterion).__name__
    for case, weight in awkward_weights():
        before = weight.clone()
        scores = criterion.scores(weight)
        assert scores.shape == weight.shape, f"{name} on {case}: scores {tuple(scores.shape)}"
        assert torch.isfinite(scores).all(), f"{name} on {case}: scores not finite"
        assert (scores >= 0).all(), f"{name} on {case}: negative scores"
        assert torch.equal(scores, criterion.scores(weight)), f"{name} on {case}: does not repeat"
        _unchanged(f"{name} on {case}", "scores borrows the weight", before, weight)


# --- compressors -----------------------------------------------------------------------


def small_models() -> Iterator[tuple[str, nn.Module, tuple[Tensor, ...]]]:
    """Yield (name, model, arguments of its forward) of a few architectures."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield (
            "multilayer perceptron",
            nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 30)),
            (torch.randn(5, 20),),
        )
        yield (
            "convolutional",
            nn.Sequential(
                nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
                nn.Conv2d(16, 24, 3, stride=2, padding=1, padding_mode="reflect"), nn.ReLU(),
                nn.Conv2d(24, 24, 3, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                nn.Linear(24, 10),
            ).eval(),
            (torch.randn(2, 3, 12, 12),),
        )  # fmt: skip
        layer = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True)
        yield "transformer", nn.TransformerEncoder(layer, 2).eval(), (torch.randn(2, 7, 24),)


def check_compressor(compressor: Compressor) -> None:
    """Check a compressor on a few small models.

    Laws: fit and transform leave model, mode, hooks and global random state untouched;
    the result is a new module that runs, shares no storage with the input, keeps its
    mode and has no more parameters; the report knows its size; the same seed repeats; a
    clone is unfitted; a class instead of a model is refused; an error leaves no trace.
    """
    _check_estimator(compressor, Compressor)
    name = type(compressor).__name__
    for case, model, args in small_models():
        where = f"{name} on {case}"
        state = _snapshot(model)
        rng = torch.random.get_rng_state()
        fitted = clone(compressor)
        small = fitted.fit_transform(model)
        assert torch.equal(rng, torch.random.get_rng_state()), f"{where}: draws global numbers"
        _check_untouched(where, model, state)
        ours = {p.data_ptr() for p in model.parameters()}
        assert not ours & {p.data_ptr() for p in small.parameters()}, f"{where}: shares storage"
        assert small.training == model.training, f"{where}: the mode changes"
        assert count_parameters(small) <= count_parameters(model), f"{where}: grows"
        assert small(*args).shape == model(*args).shape, f"{where}: another output shape"
        again = clone(compressor).fit(model).transform(model)
        for a, b in zip(small.parameters(), again.parameters(), strict=True):
            assert torch.equal(a, b), f"{where}: the same settings give other weights"
        assert str(fitted.report_), f"{where}: an empty report"  # type: ignore[attr-defined]
    _refuses(name, lambda: clone(compressor).fit(nn.Linear), "the class instead of an instance")  # type: ignore[arg-type]
    broken = nn.Sequential(nn.Linear(8, 8))
    with torch.no_grad():
        broken[0].weight[0, 0] = float("nan")
    state = _snapshot(broken)
    _refuses(name, lambda: clone(compressor).fit(broken), "a NaN weight")
    _check_untouched(f"{name} after an error", broken, state)


def _refuses(name: str, call: Callable[[], object], what: str) -> None:
    try:
        call()
    except (TypeError, ValueError):
        return
    raise AssertionError(f"{name} accepts {what}")


def _snapshot(model: nn.Module) -> dict[str, Any]:
    return {
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "modules": [(n, id(m), m.training) for n, m in model.named_modules()],
        "parameters": [(n, id(p), p.requires_grad) for n, p in model.named_parameters()],
        "hooks": [
            len(hooks)
            for m in model.modules()
            for hooks in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)
        ],
    }


def _check_untouched(where: str, model: nn.Module, before: dict[str, Any]) -> None:
    after = _snapshot(model)
    for part in ("modules", "parameters", "hooks"):
        assert before[part] == after[part], f"{where}: {part} of the input model changed"
    _same_tensors(where, before["state"], after["state"])


def _same_tensors(where: str, before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    assert list(before) == list(after), f"{where}: the input model's state has other keys"
    changed: Sequence[str] = [
        k for k in before if not torch.equal(before[k].nan_to_num(), after[k].nan_to_num())
    ]
    assert not changed, f"{where}: the input model's {changed[0]} changed"
