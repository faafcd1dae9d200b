"""Truncated singular value decomposition of a weight unfolded to a matrix."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from math import prod
from typing import ClassVar

import numpy as np
from torch import Tensor

from ..linalg import balanced_factors, break_even, leading_subspace, tail_energies
from ..protocols import Curve, Decomposition, Factorization, Factors, Metric, Rank, Spectrum, Stage
from ..spaces import Options, SearchSpace
from ..unfolding import unfold
from .regression import Fold, RegressionFactorization


class MatrixFactorization(Factorization):
    """Truncated SVD of an unfolded weight, at every rank.

    Keeps the singular vectors of the shorter side only, in the weight's precision and up
    to the rank where the factors stop being smaller: at most half of the weight's size.
    Factors of higher ranks cost another SVD, unless `every_rank` is kept.

    unfolding : which matrix (rows, columns); fold : gives the factors of (rows, r) and
    (r, columns); scheme : the name that the report shows.
    """

    def __init__(
        self, weight: Tensor, unfolding: str, fold: Fold, scheme: str, every_rank: bool = False
    ):
        matrix = unfold(weight, unfolding)
        rows, columns = matrix.shape
        values, vectors = leading_subspace(matrix)
        tails = tail_energies(values)
        self._unfolding, self._fold = unfolding, fold
        most = len(values) if every_rank else break_even(rows, columns)
        self._basis = vectors[:, :most].clone()
        ranks = np.arange(1, len(values) + 1)
        self.curve = Curve(
            scheme=scheme,
            ranks=ranks,
            costs=ranks * (rows + columns),
            errors=tails.cpu().numpy(),
            total=float(values.square().sum()),
            full_rank=len(values),
            spectra=(Spectrum(values.cpu().numpy(), (rows, columns)),),
        )

    def factors(self, weight: Tensor, rank: Rank) -> Factors:
        assert isinstance(rank, int)
        matrix = unfold(weight, self._unfolding)
        basis = self._basis
        if rank > basis.shape[1]:
            basis = leading_subspace(matrix).vectors
        left, right = balanced_factors(matrix, basis[:, :rank])
        return self._fold(left, right, weight.shape)

    def trim(self, rank: Rank) -> MatrixFactorization:
        assert isinstance(rank, int)
        result = copy.copy(self)
        result._basis = self._basis[:, :rank].clone()
        return result


def fold_output(left: Tensor, right: Tensor, shape: Sequence[int]) -> Factors:
    """Fold to the k x k kernel down to r channels, then 1 x 1 up to the outputs."""
    ones = (1,) * (len(shape) - 2)
    return Factors((right.reshape(-1, *shape[1:]), left.reshape(*left.shape, *ones)), (1, 1))


def fold_input(left: Tensor, right: Tensor, shape: Sequence[int]) -> Factors:
    """Fold to 1 x 1 down to r channels, then the k x k kernel up to the outputs."""
    ones = (1,) * (len(shape) - 2)
    kernel = left.reshape(shape[0], *shape[2:], -1).movedim(-1, 1)
    return Factors((right.reshape(*right.shape, *ones), kernel), (1, 1))


class SVD(Decomposition):
    """Truncated SVD of the channel unfolding: optimal in the Frobenius norm.

    unfolding : "output" or "input"
        Where the kernel stays: "output" is k x k to r channels, then 1 x 1, and stores
        r (out + in * k^2) numbers; "input" is 1 x 1 to r channels, then k x k, and stores
        r (in + out * k^2). The same for a layer without kernel.

    References: Eckart & Young 1936; Denton et al. 2014, arXiv 1404.0736;
    Zhang et al. 2015, arXiv 1505.06798.
    """

    search_space: ClassVar[SearchSpace] = {"unfolding": Options(("output", "input"))}

    def __init__(self, unfolding: str = "output", every_rank: bool = False):
        self.unfolding = unfolding
        self.every_rank = every_rank

    @property
    def scheme(self) -> str:
        return self.unfolding

    def unsupported(self, shape: Sequence[int]) -> str | None:
        if self.unfolding == "input" and prod(shape[2:]) == 1:
            return "without a kernel it is the same as 'output'"
        return None

    def factorize(
        self, weight: Tensor, metric: Metric | None = None, asked: Collection[int] = ()
    ) -> Factorization:
        how = (self.unfolding, self._fold, self.scheme)
        if metric is None:
            return MatrixFactorization(weight, *how, self.every_rank)
        return RegressionFactorization(weight, *how, metric, self.every_rank)

    def factorize_at(
        self, weight: Tensor, metric: Metric, rank: Rank, known: Factorization | None = None
    ) -> Factorization:
        assert isinstance(rank, int)
        how = (self.unfolding, self._fold, self.scheme)
        return RegressionFactorization(weight, *how, metric, only=rank)

    @property
    def _fold(self) -> Fold:
        return fold_input if self.unfolding == "input" else fold_output

    def stages(self, shape: Sequence[int], rank: Rank) -> tuple[Stage, ...]:
        assert isinstance(rank, int)
        out, inputs, *kernel = shape
        ones = (1,) * len(kernel)
        if self.unfolding == "input":
            return Stage((rank, inputs, *ones)), Stage((out, rank, *kernel))
        return Stage((rank, inputs, *kernel)), Stage((out, rank, *ones))
