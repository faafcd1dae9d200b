"""Any decomposition on data: its factors but the last, and the last by least squares.

What the factors before the last make of an input x is z = B x. The last, where it is pointwise,
is then ordinary least squares of the outputs on z, in closed form from the same moments as the
rest: M = C B^T (B A B^T)^-1. A decomposition of the weight alone, such as CP, Tucker or one of a
plugin, becomes one for the inputs in this way, and makes up for layers before it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import islice
from math import prod

import numpy as np
import torch
from torch import Tensor

from ..layers.chain import multiply_out
from ..linalg import cholesky
from ..protocols import Curve, Decomposition, Factorization, Factors, Metric, Rank, Stage
from .curves import merge_curves
from .refining import RefinedFactorization

# Ranks of one weight that are fitted: each takes products with its gram.
_MOST = 24


class LastFactor(Factorization):
    """A factorisation of a weight, with the last factor fitted to the outputs.

    inner : of the weight alone; offered : at which of its ranks
    """

    def __init__(
        self, inner: Factorization, weight: Tensor, metric: Metric, offered: Collection[Rank]
    ):
        self.inner = inner
        metric = metric.with_ridge(weight)
        curve = inner.curve
        ranks = [curve.rank_at(i) for i in range(len(curve.costs))]
        kept = [i for i, rank in enumerate(ranks) if rank in offered]
        self._last: dict[Rank, Tensor] = {}
        errors = []
        for i in kept:
            factors = inner.factors(weight, ranks[i])
            before = Factors(factors.tensors[:-1], factors.groups[:-1])
            goal = metric if factors.sparse is None else metric.less(factors.sparse.weight)
            reduction = multiply_out(before).flatten(1).to(metric.gram)
            seen, target = reduction @ metric.gram @ reduction.mT, goal.cross @ reduction.mT
            last = torch.cholesky_solve(target.mT, cholesky(seen)).mT
            gained = float((metric.seen(last) * metric.seen(target)).sum())
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


def pointwise_last(stages: Sequence[Stage]) -> bool:
    """Whether the last of several stages mixes channels at each position, and does nothing else."""
    links = [stage for stage in stages if stage.sparse is None]
    return len(links) > 1 and links[-1].groups == 1 and prod(links[-1].shape[2:]) == 1


def thinned(
    curve: Curve, asked: Collection[int], fits: Callable[[Rank], bool] = lambda rank: True
) -> set[Rank]:
    """Ranks at most so many, about evenly spaced in the logarithm of the cost; and those asked for.

    asked : numbers that all parts of a rank are to be
    fits : whether a rank can be offered at all
    """
    ranks = [curve.rank_at(i) for i in range(len(curve.costs))]
    if len(ranks) <= _MOST:
        return set(filter(fits, ranks))
    # Of options at about the same cost, the one that loses least of the weight.
    bins = np.log(curve.costs / curve.costs[0])
    bins = np.minimum((bins / (bins[-1] or 1.0) * _MOST).astype(int), _MOST - 1)
    best = set()
    for number in np.unique(bins):
        members = np.flatnonzero(bins == number)
        ordered = members[np.argsort(curve.errors[members], kind="stable")]
        best |= set(islice(filter(fits, (ranks[i] for i in ordered)), 1))
    alike = {r for r in ranks if any((np.array(r) == number).all() for number in asked)}
    return best | set(filter(fits, alike))


def knows_inputs(decomposition: Decomposition) -> bool:
    """Whether a decomposition itself works in the metric of the activations."""
    return type(decomposition).regress is not Decomposition.regress


def regressed(
    decomposition: Decomposition,
    weight: Tensor,
    metrics: Sequence[Metric],
    asked: Collection[int] = (),
) -> list[Factorization]:
    """Factorise each group for its inputs; nothing where the decomposition cannot be fitted.

    asked : ranks that have to be on offer, where the decomposition itself offers them
    """
    pairs = list(zip(weight, metrics, strict=True))
    if knows_inputs(decomposition):
        return [decomposition.regress(*pair) for pair in pairs]
    inner = [decomposition.factorize(group) for group in weight]
    # The same ranks for all groups, which are to have one in common. Which stages there are may
    # depend on the rank.
    curve = merge_curves([part.curve for part in inner])
    offered = thinned(
        curve, asked, lambda rank: pointwise_last(decomposition.stages(weight.shape[1:], rank))
    )
    if not offered:
        return []
    return [LastFactor(part, *pair, offered) for part, pair in zip(inner, pairs, strict=True)]


def refitted(
    decomposition: Decomposition, known: Factorization, weight: Tensor, metric: Metric, rank: Rank
) -> Factorization:
    """Fit a factorisation that `regressed` gave anew, in another metric, for one rank."""
    if isinstance(known, LastFactor):
        # What it is fitted around does not depend on inputs.
        closed: Factorization = LastFactor(known.inner, weight, metric, {rank})
    else:
        closed = decomposition.regress_at(weight, metric, rank)
    return RefinedFactorization(closed, weight, metric, rank)
