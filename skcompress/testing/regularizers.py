"""Laws of regularizers."""

from __future__ import annotations

import torch
from sklearn.base import clone
from torch import nn

from ..protocols import Regularizer
from .cases import awkward_weights
from .estimators import check_unchanged, checked_estimator


def check_regularizer(plugin: Regularizer | type[Regularizer]) -> None:
    """Check a regularizer on awkward weights and on a model.

    Laws: `penalty` is a finite non-negative scalar with a finite gradient, also at zero,
    rank-deficient and repeated spectra; its gradient is the derivative (gradcheck in
    float64 at generic weights); on a model it is `weight` times a sum in which shared
    weights count once; strength zero gives zero.
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
