"""Decompositions that know nothing of inputs, on data: their last factor by least squares.

What the factors before the last make of an input x is z = B x. The last, where it is pointwise,
is then ordinary least squares of the outputs on z, in closed form from the same moments as the
rest: M = C B^T (B A B^T)^-1. A decomposition of the weight alone, such as CP, Tucker or one of a
plugin, becomes one for the inputs in this way, and makes up for layers before it.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import replace
from math import prod

import numpy as np
from torch import Tensor

from ..linalg import damped_solve
from .decomposition import Curve, Decomposition, Factorization, Rank
from .factors import Factors
from .metric import Metric
from .product import multiply_out

# Sizes at which ranks of one weight are fitted: each takes products with its moments.
_SIZES = 24


class WeightDecomposition(Decomposition):
    """A decomposition of the weight alone, whose last factor is fitted where there are inputs.

    The last factor has to be pointwise for that; ranks at which it is not are offered without
    inputs only. Of many ranks, some of every size are fitted.
    """

    @abstractmethod
    def factorize_weight(self, weight: Tensor) -> Factorization:
        """Do the expensive step for `weight` once, for all ranks, in the Frobenius norm."""

    def factorize(
        self, weight: Tensor, metric: Metric | None = None, asked: Collection[int] = ()
    ) -> Factorization:
        found = self.factorize_weight(weight)
        if metric is None:
            return found
        ranks = [rank for rank in _thinned(found.curve, asked) if self._fits(weight.shape, rank)]
        return LastFactor(found, weight, metric, ranks)

    def factorize_at(
        self, weight: Tensor, metric: Metric, rank: Rank, known: Factorization | None = None
    ) -> Factorization:
        # What the last factor is fitted around does not depend on inputs.
        inner = known.inner if isinstance(known, LastFactor) else self.factorize_weight(weight)
        return LastFactor(inner, weight, metric, [rank])

    def _fits(self, shape: Sequence[int], rank: Rank) -> bool:
        """Whether the last stage mixes channels at each position, and does nothing else."""
        links = [stage for stage in self.stages(tuple(shape), rank) if stage.sparse is None]
        return len(links) > 1 and links[-1].groups == 1 and prod(links[-1].shape[2:]) == 1


class LastFactor(Factorization):
    """A factorisation of a weight, with the last factor fitted to the outputs.

    inner : of the weight alone; offered : at which of its ranks
    """

    def __init__(
        self, inner: Factorization, weight: Tensor, metric: Metric, offered: Collection[Rank]
    ):
        self.inner = inner
        curve = inner.curve
        ranks = [curve.rank_at(i) for i in range(len(curve.costs))]
        kept = [i for i, rank in enumerate(ranks) if rank in offered]
        self._last: dict[Rank, Tensor] = {}
        errors = []
        for i in kept:
            factors = inner.factors(weight, ranks[i])
            before = Factors(factors.tensors[:-1], factors.groups[:-1])
            goal = metric if factors.sparse is None else metric.less(factors.sparse.weight)
            reduction = multiply_out(before).flatten(1).to(metric.cross)
            seen = metric.inputs.times(reduction) @ reduction.mT
            target = goal.cross @ reduction.mT
            known = factors.tensors[-1].flatten(1).to(seen)
            last = damped_solve(seen, target, known)
            gained = float((metric.seen(2 * target - last @ seen) * metric.seen(last)).sum())
            errors.append(max(0.0, goal.energy - gained))
            self._last[ranks[i]] = last.to(weight.dtype)
        self.curve = replace(
            curve,
            ranks=curve.ranks[kept],
            costs=curve.costs[kept],
            errors=np.array(errors),
            total=metric.energy,
        )

    def factors(self, weight: Tensor, rank: Rank) -> Factors:
        factors = self.inner.factors(weight, rank)
        last = self._last[rank].reshape(factors.tensors[-1].shape)
        return replace(factors, tensors=(*factors.tensors[:-1], last))

    def trim(self, rank: Rank) -> LastFactor:
        result = copy.copy(self)
        result.inner = self.inner.trim(rank)
        result._last = {rank: self._last[rank]}
        return result


def _thinned(curve: Curve, asked: Collection[int]) -> set[Rank]:
    """Ranks of every size, of many; about evenly spaced in the logarithm of the cost.

    Of each size, what loses least of the weight, and what is the same for every weight: groups of
    a layer are to have some in common.
    """
    ranks = [curve.rank_at(i) for i in range(len(curve.costs))]
    if len(ranks) <= _SIZES:
        return set(ranks)
    parts = curve.ranks.reshape(len(ranks), -1)
    uneven = parts.max(axis=1) - parts.min(axis=1)
    sizes = np.log(curve.costs / curve.costs[0])
    sizes = np.minimum((sizes / (sizes[-1] or 1.0) * _SIZES).astype(int), _SIZES - 1)
    kept = {rank for rank, some in zip(ranks, parts.tolist(), strict=True)
            if len(set(some)) == 1 and some[0] in asked}  # fmt: skip
    for size in np.unique(sizes):
        members = np.flatnonzero(sizes == size)
        kept.add(ranks[members[np.argmin(curve.errors[members])]])
        if parts.shape[1] > 1:
            kept.add(ranks[members[np.argmin(uneven[members])]])
    return kept
