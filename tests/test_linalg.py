from __future__ import annotations

import math

import pytest
import torch

from skcompress.linalg import (
    balance,
    balanced_factors,
    cholesky,
    damped_solve,
    leading_subspace,
    lower_gram,
    polar_factor,
    spectrum,
    tail_energies,
)
from skcompress.polar_express import inverse_root
from skcompress.testing import awkward_weights

MATRICES = [(name, w.flatten(1)) for name, w in awkward_weights()]
NAMES = [name for name, _ in MATRICES]


def truncated(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    left, right = balanced_factors(matrix, leading_subspace(matrix).vectors[:, :rank])
    return left @ right


@pytest.mark.parametrize(("name", "matrix"), MATRICES, ids=NAMES)
def test_truncation_reaches_eckart_young_in_float32(name, matrix):
    reference = torch.linalg.svdvals(matrix.double())
    norm = float(matrix.double().norm())
    for rank in {1, len(reference) // 3 or 1, len(reference) // 2 or 1, len(reference)}:
        optimal = float(reference[rank:].norm())
        lost = float((truncated(matrix, rank).double() - matrix.double()).norm())
        assert lost - optimal <= 1e-5 * norm


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6, 1e8])
def test_ill_conditioned_large_matrix(condition, generator):
    m, n = 96, 400
    left = torch.linalg.qr(torch.randn(m, m, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(n, m, generator=generator, dtype=torch.float64)).Q
    values = torch.logspace(0, -torch.tensor(condition).log10().item(), m, dtype=torch.float64)
    matrix = ((left * values) @ right.mT).float()
    reference = torch.linalg.svdvals(matrix.double())
    found = leading_subspace(matrix).values
    assert torch.allclose(found, reference, atol=1e-6 * float(reference[0]), rtol=0)
    for rank in (5, 40, 80, 96):
        lost = float((truncated(matrix, rank).double() - matrix.double()).norm())
        assert lost - float(reference[rank:].norm()) <= 2e-6 * float(matrix.norm())


@pytest.mark.parametrize("size", [1e-25, 1e-3, 1e15, 1e25])
def test_very_large_and_very_small_weights(size, generator):
    matrix = torch.randn(10, 30, generator=generator)
    reference = torch.linalg.svdvals(matrix.double())
    assert torch.allclose(leading_subspace(matrix * size).values / size, reference, rtol=1e-4)
    for weight in (matrix * size, matrix.mT * size):
        left, right = balanced_factors(weight, leading_subspace(weight).vectors)
        for pair in ((left, right), balance(left * 1e-6, right * 1e6)):
            assert torch.allclose(norms(pair[0].mT), norms(pair[1]), rtol=1e-4)
            assert torch.allclose(pair[0] @ pair[1] / size, weight / size, atol=1e-4)


def norms(rows):
    return rows.double().norm(dim=1)


@pytest.mark.parametrize("decay", [1.0, 0.999, 0.99, 0.9, 0.7, 0.5, 0.1])
def test_every_rank_of_every_decay(decay, generator):
    m, n = 120, 260
    left = torch.linalg.qr(torch.randn(m, m, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(n, m, generator=generator, dtype=torch.float64)).Q
    matrix = ((left * decay ** torch.arange(m, dtype=torch.float64)) @ right.mT).float()
    values, vectors = leading_subspace(matrix)
    exact = torch.linalg.svdvals(matrix.double())
    norm = float(exact.norm())
    for rank in range(1, m, 7):
        basis = vectors[:, :rank].double()
        lost = float((matrix.double() - basis @ (basis.mT @ matrix.double())).norm())
        optimal, predicted = float(exact[rank:].norm()), float(values[rank:].norm())
        assert lost - optimal <= 2e-6 * norm
        assert abs(lost - predicted) <= 2e-6 * norm


def test_float64_takes_the_direct_route(generator):
    matrix = torch.randn(20, 30, generator=generator, dtype=torch.float64)
    matrix[:, :] *= torch.logspace(0, -14, 20, dtype=torch.float64)[:, None]
    found = leading_subspace(matrix).values
    reference = torch.linalg.svdvals(matrix)
    # Through a Gram matrix the smallest of these would drown below 1e-8.
    assert torch.allclose(found, reference, rtol=1e-6, atol=1e-16)


def test_gram_in_chunks_is_the_product_in_float64(generator):
    matrix = torch.randn(300, 5000, generator=generator)
    expected = matrix.double() @ matrix.double().mT
    assert torch.allclose(lower_gram(matrix).tril(), expected.tril(), rtol=1e-12, atol=1e-9)


def test_tail_energies_keep_tiny_tails():
    values = torch.tensor([1.0, 1e-5, 1e-9], dtype=torch.float64)
    assert tail_energies(values).tolist() == pytest.approx([1e-10 + 1e-18, 1e-18, 0.0], rel=1e-9)


@pytest.mark.parametrize("shape", [(30, 12), (12, 30)])
def test_factors_are_balanced(shape, generator):
    matrix = torch.randn(shape, generator=generator)
    left, right = balanced_factors(matrix, leading_subspace(matrix).vectors[:, :5])
    assert torch.allclose(left.norm(dim=0), right.norm(dim=1), rtol=1e-4)


def test_factors_of_zeros_are_finite():
    zeros = torch.zeros(6, 9)
    left, right = balanced_factors(zeros, leading_subspace(zeros).vectors[:, :2])
    assert torch.equal(left @ right, zeros)


def matrix_with(values, rows, columns, generator):
    left, right = (
        torch.linalg.qr(torch.randn(n, len(values), generator=generator, dtype=torch.float64)).Q
        for n in (rows, columns)
    )
    return (left * values) @ right.mT, left @ right.mT


@pytest.mark.parametrize("smallest", [1.0, 0.1, 0.01])
def test_polar_factor_both_ways(smallest, generator):
    """By eigenvectors, and as a GPU does it: in float32, against U V^T in float64."""
    values = torch.logspace(0, math.log10(smallest), 32, dtype=torch.float64)
    exact, polar = matrix_with(values, 32, 100, generator)
    work = exact.float()
    found = polar_factor(work)
    by_eigenvectors = (found.left @ found.right).double()
    by_products = (inverse_root(work @ work.mT) @ work).double()
    assert float((by_eigenvectors - polar).norm() / polar.norm()) < 5e-6
    unit = (found.unit @ found.right).double()
    assert torch.allclose(unit, exact / exact.norm(), atol=1e-6)
    assert float((by_products - polar).norm() / polar.norm()) < 5e-3
    closer = polar_factor(exact)
    assert float((closer.left @ closer.right - polar).norm() / polar.norm()) < 1e-9
    assert float(found.nuclear) == pytest.approx(float(values.sum()), rel=1e-5)
    assert float(found.frobenius) == pytest.approx(float(values.norm()), rel=1e-5)


@pytest.mark.parametrize("rows", [192, 60])
def test_polar_factor_of_a_badly_conditioned_matrix(rows, generator):
    matrix = torch.randn(rows, 192, generator=generator)
    matrix[-1] = 1e-4 * matrix[-1] + matrix[0]
    left, _, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    found = polar_factor(matrix)
    error = (found.left @ found.right).double() - left @ right
    assert float(error.norm() / (left @ right).norm()) < 1e-2
    nuclear = float(torch.linalg.matrix_norm(matrix.double(), "nuc"))
    assert float(found.nuclear) == pytest.approx(nuclear, rel=1e-6)


def test_polar_factor_of_a_square_layer_is_accurate(generator):
    matrix = torch.randn(192, 192, generator=generator)
    left, _, right = torch.linalg.svd(matrix.double())
    found = polar_factor(matrix)
    error = (found.left @ found.right).double() - left @ right
    assert float(error.norm() / (left @ right).norm()) < 2e-5


def test_polar_factors_of_several_matrices_at_once(generator):
    stack = torch.randn(3, 5, 9, generator=generator)
    stack[1] = 0
    several = polar_factor(stack)
    found = several.left @ several.right
    assert torch.equal(found[1], torch.zeros(5, 9))
    assert torch.allclose(several.nuclear, torch.linalg.matrix_norm(stack, "nuc"), rtol=1e-5)
    for one, together in zip(stack, found, strict=True):
        alone = polar_factor(one)
        assert torch.allclose(alone.left @ alone.right, together, atol=1e-5)
    roots = inverse_root(stack @ stack.mT)
    assert torch.isfinite(roots).all()
    assert torch.allclose(roots[0] @ stack[0], found[0], atol=1e-3)


@pytest.mark.parametrize("smallest", [1e-3, 1e-5])
def test_polar_factor_of_ill_conditioned_matrices(smallest, generator):
    """Directions that a Gram matrix in float32 says nothing of are as good as the others."""
    values = torch.logspace(0, math.log10(smallest), 60, dtype=torch.float64)
    exact, _ = matrix_with(values, 60, 64, generator)
    work = exact.float()
    left, _, right = torch.linalg.svd(work.double(), full_matrices=False)
    found = polar_factor(work)
    error = (found.left @ found.right).double() - left @ right
    assert float(error.norm() / 60**0.5) < 5e-6
    assert float(found.nuclear) == pytest.approx(float(values.sum()), rel=1e-6)


def test_polar_factor_of_nearly_square_matrices(generator):
    work = torch.randn(192, 192, generator=generator)
    left, _, right = torch.linalg.svd(work.double())
    found = polar_factor(work)
    assert float(((found.left @ found.right).double() - left @ right).norm() / 192**0.5) < 5e-6


def test_what_is_lost_in_rounding_hardly_counts(generator):
    work = torch.randn(12, 3, generator=generator) @ torch.randn(3, 20, generator=generator)
    found = polar_factor(work)
    values = torch.linalg.svdvals(found.left @ found.right)
    assert torch.allclose(values[:3], torch.ones(3), atol=1e-5)
    assert float(values[3:].max()) < 0.5


def test_spectrum_in_float32(generator):
    values = torch.logspace(-5, 0, 12, dtype=torch.float64)
    exact, _ = matrix_with(values, 12, 40, generator)
    found = spectrum(exact.float() * 1e12)
    assert torch.allclose(found.values.double() / 1e12, values, rtol=0.02)
    halved = found.multiplier(torch.full((12,), 0.5)) @ exact.float()
    assert torch.allclose(halved, exact.float() / 2, atol=1e-6)


@pytest.mark.parametrize("diagonal", [-1e-9, 0.0, 1e-9])
def test_cholesky_of_what_rounding_left_of_nothing(diagonal):
    matrix = torch.diag(torch.full((5,), diagonal, dtype=torch.float64))
    root = cholesky(matrix)
    assert torch.isfinite(root).all()
    assert torch.allclose(root @ root.mT, matrix, atol=1e-5)
    assert not torch.isfinite(cholesky(matrix + torch.nan)).all()


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_damped_solve(scale, generator):
    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    factor = normal(6, 40)
    gram, goal = factor @ factor.mT / 40, normal(4, 6)
    start = normal(4, 6)
    units = torch.logspace(-3, 3, 6, dtype=torch.float64)
    # What is determined is found, in whatever units each coordinate comes.
    found = damped_solve(scale * units[:, None] * gram * units, scale * goal @ gram * units, start)
    assert torch.allclose(found * units, goal, rtol=1e-3, atol=1e-5)
    # What is not stays as it was, however much rounding says otherwise.
    factor[3:] = factor[:3]
    gram = scale * (factor @ factor.mT)
    noise = 1e-9 * float(gram.diagonal().mean()) * normal(4, 6)
    found = damped_solve(gram, goal @ gram + noise, start)
    assert torch.allclose(found[:, :3] + found[:, 3:], goal[:, :3] + goal[:, 3:], atol=1e-5)
    assert torch.allclose(found[:, :3] - found[:, 3:], start[:, :3] - start[:, 3:], atol=0.1)
    assert torch.equal(damped_solve(0 * gram, 0 * goal, start), start)
