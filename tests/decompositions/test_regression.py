"""Factors fitted to what a layer gives on its inputs, against float64 references."""

from __future__ import annotations

import pytest
import torch

from skcompress.decompositions.spatial_svd import SpatialSVD
from skcompress.decompositions.svd import SVD
from skcompress.protocols import Dense, Metric
from skcompress.protocols.product import multiply_out

SCHEMES = {"output": SVD("output"), "input": SVD("input"), "spatial": SpatialSVD()}
SHAPES = [
    *((12, 8, 3, 3), (6, 10, 3, 2), (20, 3, 3, 3), (8, 8, 3, 3), (9, 1, 3, 3)),
    *((9, 7), (7, 9), (8, 8), (1, 9), (9, 1)),
    *((4, 5, 3), (4, 3, 2, 3, 2)),
]
CASES = [(s, n) for s in SHAPES for n, d in SCHEMES.items() if d.unsupported(s) is None]


def correlated_inputs(n, generator, count=400):
    mixing = torch.randn(n, n, generator=generator, dtype=torch.float64)
    scales = torch.logspace(0, -2, n, dtype=torch.float64)
    return torch.randn(count, n, generator=generator, dtype=torch.float64) * scales @ mixing


def metric_of(weight, outputs, inputs):
    count = len(inputs)
    metric = Metric(
        Dense(inputs.mT @ inputs / count),
        outputs.mT @ inputs / count,
        float(outputs.square().sum() / count),
    )
    return metric.with_ridge(weight)


def lost(factors, outputs, inputs):
    """Mean squared error of the outputs."""
    weight = multiply_out(factors).flatten(1).double()
    return float((outputs - inputs @ weight.mT).square().sum() / len(inputs))


def weight_of(shape, generator, dtype=torch.float64):
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("shape", "scheme"), CASES)
def test_predicted_errors_are_measured_ones_and_never_grow(shape, scheme, generator):
    weight = weight_of(shape, generator)
    inputs = correlated_inputs(weight[0].numel(), generator)
    outputs = inputs @ weight.flatten(1).mT
    metric = Metric.of_inputs(weight, inputs.mT @ inputs / len(inputs))
    assert metric.energy == pytest.approx(float(outputs.square().sum() / len(inputs)))
    made = SCHEMES[scheme].factorize(weight, metric)
    errors = made.curve.errors
    assert (errors[1:] <= errors[:-1] + 1e-12 * metric.energy).all()
    for i, rank in enumerate(made.curve.ranks.tolist()):
        factors = made.factors(weight, rank)
        stages = SCHEMES[scheme].stages(shape, rank)
        assert factors.stages == stages
        assert made.curve.costs[i] == sum(stage.size for stage in stages)
        # The ridge adds its share to what is predicted.
        assert lost(factors, outputs, inputs) == pytest.approx(
            errors[i], rel=0.05, abs=2e-3 * metric.energy
        )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_scheme_is_optimal_for_its_inputs(shape, dtype, generator):
    weight = weight_of(shape, generator, dtype)
    matrix = weight.flatten(1).double()
    inputs = correlated_inputs(matrix.shape[1], generator)
    outputs = inputs @ matrix.mT
    made = SVD().factorize(weight, metric_of(weight, outputs, inputs))
    exact = torch.linalg.svdvals(outputs) ** 2 / len(inputs)
    for rank in made.curve.ranks.tolist():
        optimal = float(exact[rank:].sum())
        found = lost(made.factors(weight, rank), outputs, inputs)
        assert found <= optimal + 1e-4 * float(exact.sum())


@pytest.mark.parametrize(("shape", "scheme"), CASES)
def test_inputs_help_over_weights_alone(shape, scheme, generator):
    weight = weight_of(shape, generator)
    inputs = correlated_inputs(weight[0].numel(), generator)
    outputs = inputs @ weight.flatten(1).mT
    made = SCHEMES[scheme].factorize(weight, metric_of(weight, outputs, inputs))
    plain = SCHEMES[scheme].factorize(weight)
    for rank in made.curve.ranks.tolist():
        ours, theirs = (lost(f.factors(weight, rank), outputs, inputs) for f in (made, plain))
        assert ours <= theirs * (1 + 1e-6) + 1e-4 * made.curve.total


@pytest.mark.parametrize("scheme", SCHEMES)
def test_anchoring_makes_up_for_inputs_that_have_drifted(scheme, generator):
    weight = weight_of((12, 8, 3, 3), generator)
    inputs = correlated_inputs(72, generator)
    outputs = inputs @ weight.flatten(1).mT
    drift = torch.randn(72, 72, generator=generator, dtype=torch.float64) / 72**0.5
    drifted = inputs + 0.3 * inputs @ drift
    anchored = SCHEMES[scheme].factorize(weight, metric_of(weight, outputs, drifted))
    unaware = SCHEMES[scheme].factorize(weight, metric_of(weight, outputs, inputs))
    for rank in anchored.curve.ranks.tolist():
        found = lost(anchored.factors(weight, rank), outputs, drifted)
        assert found < lost(unaware.factors(weight, rank), outputs, drifted)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", ["few samples", "zero channels", "constant", "nothing"])
def test_singular_moments_fall_back_on_the_weight(scheme, kind, generator):
    weight = weight_of((12, 8, 3, 3), generator)
    inputs = correlated_inputs(72, generator, count=20 if kind == "few samples" else 400)
    if kind == "zero channels":
        inputs[:, :36] = 0
    if kind == "constant":
        inputs = torch.ones(400, 72, dtype=torch.float64)
    if kind == "nothing":
        inputs.zero_()
    outputs = inputs @ weight.flatten(1).mT
    made = SCHEMES[scheme].factorize(weight, metric_of(weight, outputs, inputs))
    for rank in made.curve.ranks.tolist():
        factors = made.factors(weight, rank)
        assert all(bool(torch.isfinite(t).all()) for t in factors.tensors)
        norm = float(multiply_out(factors).norm())
        assert norm <= 3 * float(weight.norm())
    plain = SCHEMES[scheme].factorize(weight)
    if kind == "nothing":
        assert float((made.curve.errors / made.curve.total)[0]) == pytest.approx(
            float(plain.curve.errors[0] / plain.curve.total), rel=0.5
        )


def test_trimmed_factors_are_the_same(generator):
    weight = weight_of((12, 8, 3, 3), generator)
    inputs = correlated_inputs(72, generator)
    for decomposition in SCHEMES.values():
        made = decomposition.factorize(
            weight, metric_of(weight, inputs @ weight.flatten(1).mT, inputs)
        )
        before = made.factors(weight, 3)
        after = made.trim(3).factors(weight, 3)
        assert all(map(torch.allclose, before.tensors, after.tensors))
