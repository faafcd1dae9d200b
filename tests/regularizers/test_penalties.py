from __future__ import annotations

import pytest
import torch
from torch import nn

from skcompress import FirstDifference, NuclearNorm, SecondDifference
from skcompress.errors import ModelTypeError, NoLayerError


def test_nuclear_norm_is_the_sum_of_singular_values(generator):
    weight = torch.randn(6, 4, 3, 3, generator=generator)
    expected = torch.linalg.matrix_norm(weight.flatten(1).double(), "nuc")
    assert float(NuclearNorm().penalty(weight)) == pytest.approx(float(expected), rel=1e-6)


def test_gradient_of_the_nuclear_norm_is_the_polar_factor(generator):
    weight = torch.randn(5, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    NuclearNorm().penalty(weight).backward()
    left, _, right = torch.linalg.svd(weight.detach(), full_matrices=False)
    assert torch.allclose(weight.grad, left @ right)


@pytest.mark.parametrize("regularizer", [NuclearNorm(), FirstDifference(), SecondDifference()])
def test_zero_weight_has_no_penalty_and_no_gradient(regularizer):
    weight = torch.zeros(5, 7, requires_grad=True)
    value = regularizer.penalty(weight)
    value.backward()
    assert float(value.detach()) == 0.0
    assert torch.equal(weight.grad, torch.zeros(5, 7))


def test_first_difference_vanishes_on_constant_weights_and_second_on_linear_ones():
    linear = torch.arange(5.0)[:, None] + torch.arange(4.0)
    assert float(FirstDifference().penalty(torch.ones(5, 4))) == 0.0
    assert float(FirstDifference().penalty(linear)) == pytest.approx(4 * 4 + 5 * 3)
    assert float(SecondDifference().penalty(linear)) == pytest.approx(0.0)


def test_on_a_model_it_is_the_strength_times_the_sum():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    expected = 0.5 * sum(torch.linalg.matrix_norm(m.weight, "nuc") for m in (model[0], model[2]))
    assert float(NuclearNorm(weight=0.5)(model).detach()) == pytest.approx(
        float(expected), rel=1e-6
    )


def test_each_group_counts_for_itself():
    conv = nn.Conv2d(4, 6, 3, groups=2)
    parts = [NuclearNorm().penalty(p) for p in conv.weight.detach().chunk(2)]
    assert float(NuclearNorm(1.0)(conv).detach()) == pytest.approx(float(sum(parts)), rel=1e-6)


def test_frozen_weights_do_not_count():
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    model[0].weight.requires_grad_(False)
    alone = NuclearNorm(1.0)(nn.Sequential(model[1]))
    assert float(NuclearNorm(1.0)(model).detach()) == pytest.approx(float(alone.detach()))


def test_sum_of_regularizers():
    model = nn.Linear(5, 5)
    both = (NuclearNorm(1e-2) + FirstDifference(1e-1))(model)
    apart = NuclearNorm(1e-2)(model) + FirstDifference(1e-1)(model)
    assert float(both.detach()) == pytest.approx(float(apart.detach()), rel=1e-6)


def test_gradients_reach_parametrized_weights():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(5, 5))
    NuclearNorm(1.0)(layer).backward()
    assert all(float(p.grad.abs().sum()) > 0 for n, p in layer.named_parameters() if n != "bias")


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_bad_strength(weight):
    with pytest.raises(ValueError, match="weight of NuclearNorm must be a finite number >= 0"):
        NuclearNorm(weight)(nn.Linear(3, 3))


def test_model_without_a_fitting_layer():
    with pytest.raises(NoLayerError, match="NuclearNorm found no layer"):
        NuclearNorm()(nn.ReLU())


def test_not_a_model():
    with pytest.raises(ModelTypeError):
        NuclearNorm()(torch.zeros(3))
