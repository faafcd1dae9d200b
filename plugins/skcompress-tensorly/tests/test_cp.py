from __future__ import annotations

import numpy as np
import pytest
import torch
from skcompress_tensorly import CP
from skcompress_tensorly.cp import add_up, balanced, leading_terms, squared_distance

from skcompress.testing import awkward_weights


def random_terms(generator, sizes, rank: int) -> list[torch.Tensor]:
    return [torch.randn(size, rank, generator=generator) for size in sizes]


@pytest.mark.parametrize("sizes", [(14, 12, 3, 3), (14, 12, 5), (8, 6, 3, 2, 3)])
@pytest.mark.parametrize("rank", [1, 3])
def test_a_sum_of_few_terms_is_found(sizes, rank, generator):
    weight = add_up(random_terms(generator, sizes, rank))
    curve = CP().factorize(weight).curve
    found = int(np.argmax(curve.ranks >= rank))
    assert curve.ranks[found] == rank
    assert curve.errors[found] <= 1e-5 * curve.total
    assert curve.errors[-1] <= 1e-8 * curve.total


def test_far_better_than_random_terms_and_than_their_starting_point(generator):
    weight = torch.randn(16, 12, 3, 3, generator=generator)
    curve = CP(n_ranks=4).factorize(weight).curve
    for rank, error in zip(curve.ranks.tolist()[-2:], curve.errors[-2:], strict=True):
        guess = random_terms(generator, weight.shape, rank)
        # Even with the best strength for each of the random terms.
        columns = torch.stack([add_up([f[:, [r]] for f in guess]).flatten() for r in range(rank)])
        fitted = torch.linalg.lstsq(columns.mT, weight.flatten()[:, None]).solution
        random_loss = float((columns.mT @ fitted - weight.flatten()[:, None]).square().sum())
        start = squared_distance(weight, leading_terms(weight, rank))
        assert error < 0.9 * random_loss
        assert error < 0.9 * start


def test_error_never_grows_not_even_by_rounding(generator):
    weights = [weight for _, weight in awkward_weights()]
    # Nothing is left to fit at most ranks of these.
    weights += [add_up(random_terms(generator, (20, 30, 5), 2)) for _ in range(10)]
    for weight in weights:
        assert (np.diff(CP(n_iter_max=3).factorize(weight).curve.errors) <= 0).all()


def test_more_sweeps_fit_no_worse(generator):
    weight = torch.randn(12, 10, 3, 3, generator=generator)
    few, many = (CP(n_ranks=3, n_iter_max=n).factorize(weight).curve for n in (2, 60))
    assert (many.errors < few.errors).all()


def test_terms_do_not_cancel(generator):
    # Without a ridge the terms of this fit have a thousand times the energy of the weight.
    weight = torch.randn(16, 16, 3, 3, generator=generator)
    factorization = CP(n_iter_max=200, tol=0).factorize(weight)
    rank = int(factorization.curve.ranks[-2])
    tensors = factorization.factors(weight, rank).tensors
    ins, *others = [t.flatten(1) for t in tensors]
    norms = ins.norm(dim=1) * others[-1].norm(dim=0)
    for depthwise in others[:-1]:
        norms = norms * depthwise.norm(dim=1)
    assert float(norms.square().sum()) < 30 * float(weight.square().sum())


def test_norm_is_spread_evenly_over_the_factors(generator):
    weight = 1e4 * torch.randn(10, 8, 3, 3, generator=generator)
    factorization = CP(n_ranks=3, n_iter_max=5).factorize(weight)
    rank = int(factorization.curve.ranks[-1])
    first, *depthwise, last = factorization.factors(weight, rank).tensors
    norms = [first.flatten(1).norm(dim=1), last.flatten(1).norm(dim=0)]
    norms += [t.flatten(1).norm(dim=1) for t in depthwise]
    assert all(torch.allclose(norms[0], n, rtol=1e-3) for n in norms[1:])


def test_balancing_keeps_the_sum(generator):
    terms = random_terms(generator, (7, 6, 3), 4)
    terms[1][:, 2] = 0
    assert torch.allclose(add_up(balanced(terms)), add_up(terms), atol=1e-5)


def test_leading_terms_are_orthogonal_and_all_of_them_are_the_tensor(generator):
    tensor = torch.randn(7, 5, 3, 2, generator=generator)
    every = leading_terms(tensor, 5 * 6)
    assert torch.allclose(add_up(every), tensor, atol=1e-5)
    few = leading_terms(tensor, 11)
    lost = float(tensor.square().sum() - add_up(few).square().sum())
    assert np.isclose(squared_distance(tensor, few), lost, rtol=1e-4)


def test_svd_start_draws_nothing_and_random_start_repeats_with_its_seed(generator):
    weight = torch.randn(8, 6, 3, 3, generator=generator)
    global_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()

    def errors(**settings):
        return CP(n_ranks=3, n_iter_max=3, **settings).factorize(weight).curve.errors.tolist()

    assert errors() == errors(random_state=1)
    assert errors(init="random", random_state=0) == errors(init="random", random_state=0)
    assert errors(init="random", random_state=0) != errors(init="random", random_state=1)
    assert errors(init="random") != errors(init="random")
    assert torch.equal(torch.random.get_rng_state(), global_state[0])
    assert np.array_equal(np.random.get_state()[1], global_state[1])


def test_grid_grows_geometrically_and_every_rank_saves_something():
    grid = CP(n_ranks=6, n_iter_max=0).factorize(torch.ones(64, 32, 3, 3)).curve
    assert len(grid.ranks) == 6
    assert grid.ranks[0] == 1
    assert 0.7 * 64 * 32 * 9 < grid.costs[-1] <= 0.75 * 64 * 32 * 9
    ratios = grid.ranks[2:] / grid.ranks[1:-1]
    assert ratios.max() < 1.5 * ratios.min()


def test_trim_keeps_the_one_rank(generator):
    weight = torch.randn(8, 6, 3, 3, generator=generator)
    factorization = CP(n_ranks=4, n_iter_max=3).factorize(weight)
    rank = int(factorization.curve.ranks[1])
    before = factorization.factors(weight, rank)
    trimmed = factorization.trim(rank)
    assert list(trimmed._fits) == [rank]
    after = trimmed.factors(weight, rank)
    assert all(torch.equal(a, b) for a, b in zip(before.tensors, after.tensors, strict=True))
