"""Second moments by the samples alone do what the matrix does."""

from __future__ import annotations

import pytest
import torch

from skcompress.protocols import Dense, Metric, Spanned


@pytest.fixture(params=[(12, 5), (12, 0), (12, 1)], ids=str)
def pair(request, generator):
    n, count = request.param
    factor = torch.randn(n, count, generator=generator, dtype=torch.float64)
    if count > 3:
        factor[:, -1] = factor[:, 0]
    moment = Spanned(factor, 0.1)
    return moment, Dense(factor @ factor.mT + 0.1 * torch.eye(n, dtype=torch.float64))


def test_everything_computed_with_it_is_the_same(pair, generator):
    rows = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    mean = torch.randn(12, generator=generator, dtype=torch.float64)
    places = torch.randperm(12, generator=generator)[:7]
    found, expected = pair
    close = torch.testing.assert_close
    for _ in range(2):
        assert len(found) == len(expected)
        close(found.dense, expected.dense)
        close(found.diagonal, expected.diagonal)
        close(found.times(rows), expected.times(rows))
        close(found.solve(rows), expected.solve(rows))
        close(found.unwhiten(found.whiten(rows)), rows)
        white = found.whiten(rows)
        close(white @ white.mT, rows @ expected.dense @ rows.mT)
        close(expected.whiten(rows) @ expected.whiten(rows).mT, white @ white.mT)
        found, expected = (m.plus(0.5).plus_square(mean) for m in (found, expected))
    close(found.of(places).dense, expected.of(places).dense)
    for n_blocks in (1, 2, 6):
        blocks = [m.mean_of_blocks(n_blocks).dense for m in (found, expected)]
        close(*blocks)
        part = rows[:, : 12 // n_blocks]
        close(found.read_by(part, n_blocks), expected.read_by(part, n_blocks))


@pytest.mark.parametrize("shape", [(5, 12), (5, 3, 4), (12, 2, 6)])
def test_decompositions_find_the_same(pair, shape, generator):
    from skcompress.decompositions.low_rank_sparse import LowRankSparse
    from skcompress.decompositions.svd import SVD
    from skcompress.decompositions.tucker import Tucker
    from skcompress.protocols.product import multiply_out

    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    metrics = [Metric.of_inputs(weight, moment).with_ridge(weight) for moment in pair]
    for decomposition in (SVD(), SVD("input"), Tucker(), LowRankSparse()):
        one, other = (decomposition.factorize(weight, metric) for metric in metrics)
        rank = one.curve.rank_at(0)
        assert one.curve.errors == pytest.approx(other.curve.errors, abs=1e-9 * other.curve.total)
        products = [multiply_out(made.factors(weight, rank)) for made in (one, other)]
        torch.testing.assert_close(*products, atol=1e-6, rtol=1e-6)


def test_rows_that_count_more_are_a_metric(generator):
    from skcompress.decompositions.svd import SVD
    from skcompress.protocols.product import multiply_out

    weight = torch.randn(30, 8, generator=generator, dtype=torch.float64)
    often = torch.rand(30, generator=generator, dtype=torch.float64) ** 3 + 0.01
    made = SVD().factorize(weight, Metric.of_rows(weight, often))
    root = often.sqrt()[:, None]
    lost = root * (multiply_out(made.factors(weight, 3)) - weight)
    best = torch.linalg.svdvals(root * weight)[3:].square().sum()
    torch.testing.assert_close(lost.square().sum(), best)
    assert made.curve.errors[2] == pytest.approx(float(best))
