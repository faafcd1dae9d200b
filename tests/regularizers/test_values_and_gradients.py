"""Each penalty against its definition in float64."""

from __future__ import annotations

import pytest
import torch

from skcompress import (
    FirstDifference,
    FrobeniusNorm,
    GroupLasso,
    LogDet,
    NuclearNorm,
    NuclearRatio,
    SchattenNorm,
    SecondDifference,
    StableRank,
    registry,
    testing,
)
from skcompress.errors import ProximalError, RegularizerValueError
from skcompress.regularizers.spectral import Spectral
from skcompress.unfolding import SCHEMES, unfold

SPECTRAL = [
    name
    for name in registry.names("regularizers")
    if issubclass(registry.resolve("regularizers", name), Spectral)
]


def by_definition(name, matrix):
    """The penalty of a matrix in plain formulas."""
    s = torch.linalg.svdvals(matrix)
    total = s.square().sum()
    gram = matrix @ matrix.mT if len(matrix) <= matrix.shape[1] else matrix.mT @ matrix
    one = torch.eye(len(gram), dtype=gram.dtype)
    return {
        "nuclear_norm": s.sum(),
        "nuclear_ratio": s.sum() / total.sqrt(),
        "hoyer_spectrum": s.sum() ** 2 / total,
        "schatten": ((s**2 + 1e-6) ** 0.25 - 1e-6**0.25).sum(),
        "stable_rank": total / s[0] ** 2,
        "log_det": torch.logdet(one + gram / 1e-2),
        "orthogonality": (gram - one).square().sum(),
        "frobenius": total,
        "l1": matrix.abs().sum(),
    }[name]


@pytest.mark.parametrize("name", [*SPECTRAL, "frobenius", "l1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient_follow_the_definition(name, dtype, generator):
    regularizer = registry.make("regularizers", name)
    for shape in ((6, 4, 3, 3), (30, 7), (1, 9)):
        weight = torch.randn(shape, generator=generator).to(dtype)
        exact = weight.double().requires_grad_()
        expected = by_definition(name, unfold(exact, "output"))
        (slope,) = torch.autograd.grad(expected, exact)
        rel = 2e-5 if dtype == torch.float32 else 1e-10
        assert regularizer.penalty(weight).item() == pytest.approx(expected.item(), rel)
        found = regularizer.gradient(weight).double()
        assert float((found - slope).norm()) <= rel * max(1.0, float(slope.norm()))


@pytest.mark.parametrize("name", SPECTRAL)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes_unfold_as_the_compressors_do(name, scheme, generator):
    regularizer = registry.make("regularizers", name).set_params(scheme=scheme)
    weight = torch.randn(6, 4, 3, 2, generator=generator, dtype=torch.float64)
    plain = registry.make("regularizers", name).penalty(unfold(weight, scheme))
    assert float(regularizer.penalty(weight)) == pytest.approx(float(plain))
    testing.check_regularizer(regularizer)


@pytest.mark.parametrize("name", SPECTRAL)
def test_matrices_of_one_size_together_are_the_same_as_one_by_one(name, generator):
    regularizer = registry.make("regularizers", name)
    shapes = [(6, 4, 3, 3), (36, 6), (6, 36), (5, 5), (6, 4, 3, 3)]
    weights = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    weights[1].zero_()
    totals = [torch.ones_like(one) for one in weights]
    pairs = [
        (regularizer._unfold(w), regularizer._unfold(t, w))
        for w, t in zip(weights, totals, strict=True)
    ]
    regularizer._add_stacked_(pairs, 0.5)
    for one, together in zip(weights, totals, strict=True):
        assert torch.allclose(1 + 0.5 * regularizer.gradient(one), together, atol=1e-12)


@pytest.mark.parametrize("name", SPECTRAL)
def test_totals_may_lie_otherwise_in_memory(name, generator):
    regularizer = registry.make("regularizers", name)
    weight = torch.randn(6, 4, 3, 3, generator=generator, dtype=torch.float64)
    total = torch.zeros_like(weight).to(memory_format=torch.channels_last)
    regularizer.add_gradients_([weight], [total], 0.5)
    assert torch.allclose(total, 0.5 * regularizer.gradient(weight), atol=1e-12)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_large_networks_take_several_threads_and_give_the_same(scheme, generator):
    regularizer = NuclearNorm(scheme=scheme)
    shapes = [(128, 64, 3, 3), (100, 700), (700, 100), (5, 5), (160, 100, 3, 3)]
    weights = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    totals, before = [torch.ones_like(one) for one in weights], torch.get_num_threads()
    regularizer.add_gradients_(weights, totals, 0.5)
    assert torch.get_num_threads() == before
    for one, together in zip(weights, totals, strict=True):
        assert torch.allclose(1 + 0.5 * regularizer.gradient(one), together, atol=1e-10)


def test_gradient_of_the_nuclear_norm_stays_a_subgradient_where_float32_ends(generator):
    left, right = (torch.linalg.qr(torch.randn(40, 20, generator=generator).double()).Q
                   for _ in range(2))  # fmt: skip
    values = torch.logspace(0, -9, 20, dtype=torch.float64)
    gradient = NuclearNorm().gradient(((left * values) @ right.mT).float()).double()
    assert float(torch.linalg.matrix_norm(gradient, 2)) <= 1 + 1e-3
    large = values > 1e-2
    inner = (left.mT @ gradient @ right).diagonal()
    assert torch.allclose(inner[large], torch.ones_like(inner[large]), atol=1e-3)


@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e12, 1e25])
def test_scale_is_no_obstacle(scale, generator):
    weight = torch.randn(8, 20, generator=generator)
    gradient = NuclearNorm().gradient(weight)
    assert torch.allclose(NuclearNorm().gradient(weight * scale), gradient, atol=1e-5)
    assert float(NuclearRatio().penalty(weight * scale)) == pytest.approx(
        float(NuclearRatio().penalty(weight)), rel=1e-4
    )
    slope = NuclearRatio().gradient(weight)
    assert torch.allclose(NuclearRatio().gradient(weight * scale) * scale, slope, atol=1e-5)


def test_difference_penalties_by_hand():
    linear = torch.arange(5.0)[:, None] + torch.arange(4.0)
    assert float(FirstDifference().penalty(torch.ones(5, 4))) == 0.0
    assert float(FirstDifference().penalty(linear)) == pytest.approx(4 * 4 + 5 * 3)
    assert float(FirstDifference(axes="out").penalty(2 * linear)) == pytest.approx(4 * 4 * 4)
    assert float(FirstDifference(axes="in", squared=False).penalty(2 * linear)) == pytest.approx(30)
    assert float(SecondDifference().penalty(linear)) == pytest.approx(0.0)
    kernel = torch.tensor([0.0, 1.0, 0.0]).reshape(1, 1, 3)
    assert float(FirstDifference().penalty(kernel)) == 0.0
    assert float(FirstDifference(kernel=True).penalty(kernel)) == pytest.approx(2.0)
    assert float(SecondDifference(kernel=True).penalty(kernel)) == pytest.approx(4.0)


@pytest.mark.parametrize("cls", [FirstDifference, SecondDifference])
@pytest.mark.parametrize("axes", ["out", "in", "both"])
@pytest.mark.parametrize("squared", [True, False])
def test_difference_penalties_keep_the_laws_on_every_axis(cls, axes, squared):
    testing.check_regularizer(cls(axes=axes, squared=squared, kernel=True))


@pytest.mark.parametrize(
    "regularizer",
    [FrobeniusNorm(squared=False), GroupLasso(axis="in"), SchattenNorm(p=1.5), LogDet(epsilon=1.0)],
)
def test_options_keep_the_laws(regularizer):
    testing.check_regularizer(regularizer)


def test_group_lasso_by_hand():
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 1.0]])
    assert float(GroupLasso().penalty(weight)) == pytest.approx(2**0.5 * 6)
    assert float(GroupLasso(axis="in").penalty(weight)) == pytest.approx(3**0.5 * (3 + 17**0.5))
    shortened = GroupLasso().prox(weight, step=2**0.5)  # by 2 each
    assert torch.allclose(shortened, torch.tensor([[1.8, 2.4], [0.0, 0.0], [0.0, 0.0]]))


def test_proximal_step_of_the_nuclear_norm_thresholds_singular_values(generator):
    weight = torch.randn(5, 4, 3, 3, generator=generator, dtype=torch.float64)
    before = torch.linalg.svdvals(weight.flatten(1))
    step = float(before[2])
    after = torch.linalg.svdvals(NuclearNorm().prox(weight, step).flatten(1))
    assert torch.allclose(after, (before - step).clamp(min=0), atol=1e-12)


def test_a_very_long_step_of_a_difference_penalty_is_stable(generator):
    weight = torch.randn(6, 5, generator=generator)
    smoothed = FirstDifference().prox(weight, 1e6)
    assert torch.allclose(smoothed, weight.mean().expand(6, 5), atol=1e-4)


@pytest.mark.parametrize(
    "regularizer", [StableRank(), NuclearRatio(), LogDet(), FirstDifference(squared=False)]
)
def test_no_proximal_step_is_an_error_that_says_what_to_do(regularizer):
    with pytest.raises(ProximalError, match="use add_grad_ instead"):
        regularizer.prox(torch.ones(3, 3), 0.1)


@pytest.mark.parametrize(
    ("regularizer", "message"),
    [
        (NuclearNorm(scheme="auto"), "scheme of NuclearNorm must be one of 'output', 'input'"),
        (FirstDifference(axes="kernel"), "axes of FirstDifference must be 'out', 'in' or 'both'"),
        (GroupLasso(axis="both"), "axis of GroupLasso must be 'out' or 'in'; got 'both'"),
        (SchattenNorm(p=0), "p of SchattenNorm must be > 0; got 0"),
        (LogDet(epsilon=-1.0), "epsilon of LogDet must be > 0"),
    ],
)
def test_bad_parameters(regularizer, message):
    with pytest.raises(RegularizerValueError, match=message):
        regularizer.penalty(torch.ones(3, 3))
