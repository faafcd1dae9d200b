"""Laws of regularizers."""

from __future__ import annotations

import copy
import math

import torch
from sklearn.base import clone
from torch import Tensor, nn

from ..errors import ProximalError
from ..protocols import Regularizer
from .cases import awkward_weights
from .estimators import check_unchanged, checked_estimator
from .spaces import corners


def check_regularizer(plugin: Regularizer | type[Regularizer]) -> None:
    """Check a regularizer on awkward weights and on a model.

    Laws: `penalty` is a finite non-negative scalar with a finite gradient, also at zero,
    rank-deficient and repeated spectra; its gradient is the derivative (gradcheck in
    float64 at generic weights), and `gradient` and `gradients` give the same; where there
    is a `prox`, no other point nearby has a lower penalty plus distance; on a model it is
    `weight` times a sum in which shared weights count once, `add_grad_` adds the gradient
    of that, with `every=2` twice as much every other time; strength zero gives zero; what
    its `search_space` declares works.
    """
    regularizer: Regularizer = checked_estimator(plugin, Regularizer)
    name = type(regularizer).__name__
    for case, weight in awkward_weights():
        leaf = weight.clone().requires_grad_()
        value = regularizer.penalty(leaf)
        assert value.dim() == 0, f"{name} on {case}: penalty of shape {tuple(value.shape)}"
        good = bool(torch.isfinite(value)) and float(value.detach()) >= 0
        assert good, f"{name} on {case}: penalty {float(value.detach())}"
        if value.requires_grad:
            value.backward()
            assert torch.isfinite(leaf.grad).all(), f"{name} on {case}: gradient not finite"  # type: ignore[arg-type]
        check_unchanged(f"{name} on {case}", "penalty borrows the weight", weight, leaf.detach())
        _check_gradients(f"{name} on {case}", regularizer, weight, leaf.grad)
        _check_prox(f"{name} on {case}", regularizer, weight)
    generator = torch.Generator().manual_seed(1)
    for shape in ((5, 7), (7, 5), (4, 3, 3, 2)):
        leaf = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(regularizer.penalty, leaf), f"{name}: gradcheck {shape}"
    _check_model(name, clone(regularizer).set_params(weight=0.5))
    for where, variant, _ in corners(regularizer):
        for case, weight in awkward_weights():
            found = float(variant.penalty(weight))
            assert 0 <= found < math.inf, f"{where} on {case}: penalty {found}"


def _close(a: Tensor, b: Tensor) -> bool:
    size = max(float(b.norm()), 1e-6)
    return float((a - b).norm()) <= 1e-4 * size


def _check_gradients(
    case: str, regularizer: Regularizer, weight: Tensor, expected: Tensor | None
) -> None:
    """Check `gradient` and `gradients` against what differentiating `penalty` has given."""
    expected = torch.zeros_like(weight) if expected is None else expected
    borrowed = weight.clone(memory_format=torch.preserve_format)
    found = [regularizer.gradient(borrowed), *regularizer.gradients([borrowed, borrowed])]
    check_unchanged(case, "gradient borrows the weight", weight, borrowed)
    for gradient in found:
        assert not gradient.requires_grad, f"{case}: gradient carries a graph"
        assert gradient.shape == weight.shape, f"{case}: gradient of another shape"
        assert _close(gradient, expected), f"{case}: gradient is not the derivative of penalty"


def _check_prox(case: str, regularizer: Regularizer, weight: Tensor, step: float = 0.1) -> None:
    """Check that the proximal point, where there is one, beats the points around it."""
    weight = weight.double()
    try:
        point = regularizer.prox(weight, step)
    except ProximalError:
        return

    def objective(x: Tensor) -> float:
        return float(step * regularizer.penalty(x) + (x - weight).square().sum() / 2)

    assert point.shape == weight.shape, f"{case}: prox of another shape"
    best = objective(point)
    generator = torch.Generator().manual_seed(2)
    for size in (1.0, 0.1, 0.01):
        shift = torch.randn(point.shape, generator=generator, dtype=torch.float64)
        for other in (point + size * shift, point + size * (weight - point), point * (1 - size)):
            assert objective(other) >= best - 1e-8 * (1 + best), f"{case}: prox is not the best"


def _check_model(name: str, regularizer: Regularizer) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shared = nn.Linear(6, 6)
    twice = nn.Sequential(shared, nn.ReLU(), shared)
    once = float(clone(regularizer)(nn.Sequential(shared)).detach())
    both = clone(regularizer)(twice)
    total = float(both.detach())
    assert abs(once - total) <= 1e-6 * max(1.0, once), f"{name} counts a shared weight twice"
    (expected,) = torch.autograd.grad(both, shared.weight)

    rhythms = [(1, (1, 1, 1)), (2, (2, 0, 2))]
    for every, factors in rhythms if "every" in regularizer.get_params() else rhythms[:1]:
        rare = clone(regularizer)
        if every > 1:
            rare.set_params(every=every)
        model = copy.deepcopy(twice)
        for factor in factors:
            model[0].weight.grad = torch.ones_like(shared.weight)
            rare.add_grad_(model)
            added = model[0].weight.grad - 1
            assert _close(added, factor * expected), f"{name}: add_grad_ with every={every}"
    off = clone(regularizer).set_params(weight=0.0)
    assert float(off(twice).detach()) == 0.0, f"{name} with weight=0 is not zero"
