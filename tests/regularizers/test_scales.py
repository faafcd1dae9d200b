"""Weights of any size: in float32 what float64 says, wherever it is a number of float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from skcompress import FrobeniusNorm, GroupLasso, registry
from skcompress.errors import ProximalError

SCALES = [1e-30, 1e-19, 1e-12, 1e12, 1e19, 1e30]
REGULARIZERS = [registry.make("regularizers", name) for name in registry.names("regularizers")]
REGULARIZERS += [FrobeniusNorm(squared=False), GroupLasso(axis="in")]


def agrees(found, exact):
    """Whether both are the same; true where float32 has no such number, or one with few digits."""
    size = float(exact.abs().max())
    if not 1e-34 < size < 3e38:
        return True
    return float((found.double() - exact).norm()) <= 1e-4 * float(exact.norm())


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=str)
def test_values_gradients_and_steps(regularizer, scale, generator):
    weight = scale * torch.randn(12, 20, generator=generator) / 4
    exact = weight.double()
    assert agrees(regularizer.penalty(weight), regularizer.penalty(exact))
    assert agrees(regularizer.gradient(weight), regularizer.gradient(exact))
    try:
        point = regularizer.prox(weight, 0.1 * scale)
    except ProximalError:
        return
    assert agrees(point, regularizer.prox(exact, 0.1 * scale))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["stable_rank", "hoyer_spectrum", "nuclear_ratio"])
def test_what_is_blind_to_scale_stays_so(name, scale, generator):
    weight = torch.randn(8, 10, generator=generator)
    regularizer = registry.make("regularizers", name)
    value = regularizer.penalty(weight)
    assert torch.allclose(regularizer.penalty(weight * scale), value, rtol=1e-4)
    slope = regularizer.gradient(weight * scale).double() * scale
    assert torch.allclose(slope, regularizer.gradient(weight).double(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("regularizer", REGULARIZERS, ids=str)
def test_zeros_pull_nowhere_that_is_no_number(regularizer):
    layer = nn.Linear(6, 4)
    nn.init.zeros_(layer.weight)
    regularizer.add_grad_(layer)
    assert torch.isfinite(layer.weight.grad).all()
