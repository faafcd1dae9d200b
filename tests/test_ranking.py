"""Selection by bit patterns against sorting."""

from __future__ import annotations

import pytest
import torch

from skcompress.ranking import keep_largest, numbers_kept, relative


def numbers(n, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=generator, dtype=torch.float64).square().to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("n_kept", [0, 1, 7, 500, 999, 1000])
def test_the_largest_stay(dtype, n_kept):
    values = numbers(1000, dtype=dtype).reshape(10, 100)
    kept = keep_largest(values, n_kept)
    assert kept.shape == values.shape
    assert int(kept.sum()) == n_kept
    if 0 < n_kept < 1000:
        assert values[kept].min() >= values[~kept].max()


def test_tiny_and_huge_numbers_and_zeros_of_both_signs_are_in_order():
    values = torch.tensor([0.0, -0.0, 1e-45, 1e-40, 1e-38, 1.0, 3e38])
    for n_kept in range(8):
        kept = keep_largest(values, n_kept)
        assert int(kept.sum()) == n_kept
        assert kept[7 - min(n_kept, 5) :].all()


def test_numbers_that_differ_in_the_last_bit_are_told_apart():
    values = torch.tensor([1.0, 1.0 + 2**-23, 1.0 - 2**-24])
    assert keep_largest(values, 1).tolist() == [False, True, False]
    values = torch.tensor([1.0, 1.0 + 2**-52], dtype=torch.float64)
    assert keep_largest(values, 1).tolist() == [False, True]


def test_of_equal_numbers_those_that_stay_are_spread_evenly_and_the_same_each_time():
    values = torch.ones(6, 10)
    kept = keep_largest(values, 15)
    assert int(kept.sum()) == 15
    assert kept.sum(1).max() - kept.sum(1).min() <= 1
    assert torch.equal(kept, keep_largest(values, 15))


def test_numbers_of_several_parts_are_those_of_all_of_them_sorted():
    parts = [numbers(300, seed) * (seed + 1) for seed in range(4)] + [torch.zeros(50)]
    every = torch.cat(parts).sort(descending=True).values
    for n_kept in (1, 13, 600, 1199, 1200):
        counts = numbers_kept([part.clone for part in parts], n_kept)
        assert counts == [int((part >= every[n_kept - 1]).sum()) for part in parts]
    assert numbers_kept([part.clone for part in parts], 0) == [0] * 5


def test_equal_numbers_of_several_parts_are_counted_exactly():
    parts = [torch.ones(10), torch.full((10,), 2.0), torch.ones(10).double()]
    assert numbers_kept([part.clone for part in parts], 24) == [10, 10, 4]


def exact_relative(values):
    ordered, order = values.double().flatten().sort(stable=True)
    result = torch.empty_like(ordered)
    result[order] = ordered / ordered.flip(0).cumsum(0).flip(0)
    return result.nan_to_num().reshape(values.shape)


@pytest.mark.parametrize("n", [1, 2, 1000])
def test_shares_of_what_is_not_smaller(n):
    values = numbers(n)
    found = relative(values)
    torch.testing.assert_close(found, exact_relative(values).float())
    assert float(found.max()) == 1.0


def test_shares_of_many_numbers_keep_the_order_and_are_nearly_exact():
    values = numbers(200_000).reshape(400, 500)
    found, exact = relative(values), exact_relative(values)
    assert float(found.max()) <= 1.0
    order = values.flatten().argsort(stable=True)
    assert (found.flatten()[order].diff() >= 0).all()
    error = ((found - exact) / exact.clamp(min=1e-30)).abs()
    assert float(error.max()) < 1e-3
    assert float(error.flatten()[order[-60_000:]].max()) < 1e-5


def test_shares_of_zeros_are_zero():
    for n in (5, 100_000):
        assert not relative(torch.zeros(n)).any()
    assert relative(torch.tensor([0.0, 2.0, 0.0])).tolist() == [0.0, 1.0, 0.0]
