"""From a share of zeros to the number of values that stay in each weight."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from numbers import Integral
from typing import Any

from sklearn.base import clone

from ...errors import MinKeptError
from ...protocols import Prunable, SparsityAllocation
from ..checks import allocation_of


def sparsity_allocation(owner: str, given: Any) -> SparsityAllocation:
    """Make the allocation of a name, or copy the one given; refuse those of ranks."""
    allocation = allocation_of(owner, given, SparsityAllocation, "zeros")
    return clone(allocation)  # type: ignore[no-any-return]


def least_kept(min_kept: Any, sparsity: float, sizes: Sequence[int]) -> list[int]:
    """How many values of each weight have to stay.

    min_kept : "auto" for a hundredth, or half of the share that stays where that is less
    """
    if isinstance(min_kept, Integral):
        return [min(int(min_kept), size) for size in sizes]
    share = min(0.01, (1 - sparsity) / 2) if min_kept == "auto" else min_kept
    least = [min(ceil(share * size - 1e-6), size) for size in sizes]
    if min_kept == "auto" and sum(least) > n_that_stay(sparsity, sum(sizes)):
        return [int(share * size) for size in sizes]  # fewer values stay than there are weights
    return least


def n_that_stay(sparsity: float, total: int) -> int:
    """How many of all values are left; the zeros are the share asked for, to one number."""
    return total - round(sparsity * total)


def numbers_that_stay(
    owner: str,
    weights: Sequence[Prunable],
    sparsity: float,
    min_kept: Any,
    allocation: SparsityAllocation,
) -> list[int]:
    """Divide the budget over the weights."""
    total = sum(weight.size for weight in weights)
    n_kept = n_that_stay(sparsity, total)
    least = sum(weight.least for weight in weights)
    if least > n_kept:
        raise MinKeptError(owner, min_kept, sparsity, least, total)
    counts = [int(n) for n in allocation.divide(weights, n_kept)]
    bounded = all(w.least <= n <= w.size for n, w in zip(counts, weights, strict=True))
    if not bounded or sum(counts) != n_kept:
        raise AssertionError(
            f"{type(allocation).__name__} divides {n_kept} values into {counts}: run "
            "skcompress.testing.check_allocation on it"
        )
    return counts
