"""A product of two factors and a sparse term: W = U V + S."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from math import prod
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from sklearn.utils._param_validation import Interval
from torch import Tensor

from ..linalg import balance, break_even, right_directions, tail_energies
from ..protocols import (
    Curve,
    Decomposition,
    Factorization,
    Factors,
    Metric,
    Rank,
    Sparse,
    Spectrum,
    Stage,
)
from ..ranking import keep_largest
from ..spaces import FloatRange, IntRange, SearchSpace
from .alternating import Closest, Goal, Outputs, take_turns
from .svd import SVD, MatrixFactorization, fold_output

# Ranks for which a sparse term is found, as shares of the largest that saves numbers. Between two
# of them the term of one or the other serves: it is the term that takes the time.
_PLACES = (1 / 32, 1 / 8, 1 / 4, 1 / 2, 3 / 4)


class WhitenedFactorization(Factorization):
    """Low-rank factors of a target in the metric of inputs.

    target : (out, n), float64; base : squared error of the outputs that no weight avoids
    """

    def __init__(self, target: Tensor, shape: Sequence[int], metric: Metric, base: float):
        out, n = target.shape
        seen = metric.inputs.whiten(metric.seen(target))
        values, directions = right_directions(seen)
        most = min(break_even(out, n), len(values))
        directions = directions[:, :most]
        self._left = metric.unseen(seen @ directions)
        self._right = metric.inputs.unwhiten(directions.mT)
        ranks = np.arange(1, most + 1)
        tails = tail_energies(values)[:most]
        self._shape = tuple(shape)
        self.curve = Curve(
            scheme="output",
            ranks=ranks,
            costs=ranks * (out + n),
            errors=(base + tails).clamp_(min=0).cpu().numpy(),
            total=metric.energy,
            full_rank=min(out, n),
            spectra=(Spectrum(values.cpu().numpy(), (out, n)),),
        )

    def factors(self, weight: Tensor, rank: Rank) -> Factors:
        assert isinstance(rank, int)
        left, right = balance(self._left[:, :rank], self._right[:rank])
        return fold_output(left.to(weight.dtype), right.to(weight.dtype), self._shape)

    def trim(self, rank: Rank) -> WhitenedFactorization:
        assert isinstance(rank, int)
        result = copy.copy(self)
        result._left, result._right = self._left[:, :rank].clone(), self._right[:rank].clone()
        return result


class Piece(NamedTuple):
    """A sparse term, None for nothing, and a factorisation of what it leaves over."""

    sparse: Sparse | None
    low: Factorization


class LowRankSparseFactorization(Factorization):
    """At every rank the best of several sparse terms, with low-rank factors of the rest.

    pieces : of the same ranks; total : squared norm of the whole weight in their metric
    """

    def __init__(self, pieces: Sequence[Piece], scheme: str, total: float):
        self._pieces = list(pieces)
        extra = 0 if pieces[0].sparse is None else len(pieces[0].sparse.values)
        curve = pieces[0].low.curve
        errors = np.stack([piece.low.curve.errors for piece in pieces])
        self._which = errors.argmin(axis=0)
        self.curve = replace(
            curve,
            scheme=scheme,
            costs=curve.costs + extra,
            errors=errors.min(axis=0),
            total=total,
        )
        # Of each term, what the ranks need at which it is the best.
        for number, piece in enumerate(pieces):
            ranks = curve.ranks[self._which == number]
            most = int(ranks.max()) if len(ranks) else 1
            self._pieces[number] = piece._replace(low=piece.low.trim(most))

    def _piece(self, rank: Rank) -> Piece:
        assert isinstance(rank, int)
        return self._pieces[self._which[rank - 1]]

    def factors(self, weight: Tensor, rank: Rank) -> Factors:
        sparse, low = self._piece(rank)
        if sparse is None:
            return low.factors(weight, rank)
        return replace(low.factors(weight - sparse.weight, rank), sparse=sparse)

    def trim(self, rank: Rank) -> LowRankSparseFactorization:
        result = copy.copy(self)
        sparse, low = self._piece(rank)
        result._pieces = [Piece(sparse, low.trim(rank))]
        result._which = np.zeros_like(self._which)
        return result


class LowRankSparse(Decomposition):
    """Truncated SVD and a sparse term: the few numbers of a weight that fit no low rank.

    The factors are those of "output": k x k to r channels, then 1 x 1. The term is a convolution
    (or a linear layer) from the inputs to the outputs, of which `density` of the numbers are
    stored; where they are is stored too, as a buffer of 32-bit integers, which counts as bytes and
    not as parameters. Stored are r (out + in * k^2) + density * out * in * k^2 numbers.

    density : float in [0, 1)
        Share of the weight's numbers that the term keeps. 0 is plain SVD. Budgets of less are out
        of reach.
    n_iter : int >= 1
        How many times the positions and values of the term are chosen anew, by turns with the
        factors. More is never worse, and takes as many times as long.

    It saves numbers, not time: see `skcompress.layers.sparse`.

    The turns are taken for a few ranks; ranks between have the term of the one next to them that
    suits them better, and factors that are optimal for it.

    References: Zhou & Tao 2011 (GoDec); Zhang & Papyan 2024, arXiv 2409.13652 (OATS);
    Makni et al. 2025, arXiv 2502.00899 (HASSLE-free).

    >>> weight = torch.outer(torch.arange(20.0), torch.ones(30))
    >>> weight[3, 7] = 90.0  # an outlier, which would take a rank of its own
    >>> curve = LowRankSparse(density=0.01).factorize(weight).curve
    >>> int(curve.costs[0]), bool(curve.errors[0] < 1e-4 * curve.total)  # of rank 1
    (56, True)
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "density": [Interval(Real, 0, 1, closed="left")],
        "n_iter": [Interval(Integral, 1, None, closed="left")],
    }
    search_space: ClassVar[SearchSpace] = {
        "density": FloatRange(0.02, 0.3, log=True),
        "n_iter": IntRange(1, 8),
    }

    def __init__(self, density: float = 0.1, n_iter: int = 3):
        self.density = density
        self.n_iter = n_iter

    @property
    def scheme(self) -> str:
        self._validate_params()
        return f"output + {100 * self.density:.4g}% sparse"

    @property
    def adds_sparse(self) -> bool:
        return self.density > 0

    def n_kept(self, shape: Sequence[int]) -> int:
        """How many numbers of a weight (out, in, *kernel) the sparse term stores."""
        return round(self.density * prod(shape))

    def factorize(
        self, weight: Tensor, metric: Metric | None = None, asked: Collection[int] = ()
    ) -> Factorization:
        scheme, ranks = self.scheme, self._ranks(weight.shape)
        if metric is not None:
            return self._regression(weight, metric, ranks)
        goal = Closest(weight)

        def low_rank(rest: Tensor) -> Factorization:
            return MatrixFactorization(rest, "output", fold_output, scheme)

        total = float(weight.to(torch.float64).square().sum())
        return self._factorization(weight, goal, low_rank, total, ranks)

    def factorize_at(
        self, weight: Tensor, metric: Metric, rank: Rank, known: Factorization | None = None
    ) -> Factorization:
        assert isinstance(rank, int)
        return self._regression(weight, metric, [rank]).trim(rank)

    def _regression(
        self, weight: Tensor, metric: Metric, ranks: Collection[int]
    ) -> LowRankSparseFactorization:
        target = metric.inputs.solve(metric.cross)
        base = metric.energy - float((metric.seen(target) * metric.seen(metric.cross)).sum())
        goal = Outputs(metric, target, weight.dtype)

        def low_rank(rest: Tensor) -> Factorization:
            return WhitenedFactorization(rest.flatten(1), weight.shape, metric, base)

        wanted = target.reshape(weight.shape)
        return self._factorization(wanted, goal, low_rank, metric.energy, ranks)

    def _factorization(
        self,
        wanted: Tensor,
        goal: Goal,
        low_rank: Callable[[Tensor], Factorization],
        total: float,
        ranks: Collection[int],
    ) -> LowRankSparseFactorization:
        n_kept = self.n_kept(wanted.shape)
        if not n_kept:
            return LowRankSparseFactorization([Piece(None, low_rank(wanted))], self.scheme, total)
        pieces = []
        for sparse_term in take_turns(goal, ranks, n_kept, self.n_iter):
            found = sparse_term.reshape(wanted.shape)
            # So many numbers are stored, although some of them may be zero.
            sparse = Sparse.of(found, keep_largest(found.abs(), n_kept))
            pieces.append(Piece(sparse, low_rank(wanted - found)))
        return LowRankSparseFactorization(pieces, self.scheme, total)

    def _ranks(self, shape: Sequence[int]) -> list[int]:
        """Ranks for which a sparse term is found."""
        rows, columns = shape[0], prod(shape[1:])
        saving = (rows * columns - self.n_kept(shape) - 1) // (rows + columns)
        most = max(1, min(saving, rows, columns))
        return sorted({max(1, round(place * most)) for place in _PLACES})

    def stages(self, shape: Sequence[int], rank: Rank) -> tuple[Stage, ...]:
        chain = SVD().stages(shape, rank)
        n_kept = self.n_kept(shape)
        return (*chain, Stage((n_kept,), sparse=tuple(shape))) if n_kept else chain
