"""Truncated SVD that separates a convolution's kernel axes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from ..protocols import Decomposition, Factorization, Factors, Metric, Rank, Stage
from ..unfolding import separates
from .regression import RegressionFactorization
from .svd import MatrixFactorization


def fold_spatial(left: Tensor, right: Tensor, shape: Sequence[int]) -> Factors:
    """Fold to k x 1 down to r channels, then 1 x k up to the outputs."""
    out, inputs, first, *others = shape
    ones = (1,) * len(others)
    vertical = right.reshape(-1, inputs, first, *ones)
    horizontal = left.reshape(out, *others, -1).movedim(-1, 1).unsqueeze(2)
    return Factors((vertical, horizontal), (1, 1))


class SpatialSVD(Decomposition):
    """k x 1 to r channels, then 1 x k: optimal among such pairs in the Frobenius norm.

    Stores r k (in + out) numbers for a k x k kernel. With three kernel axes the first is
    separated from the other two.

    Reference: Jaderberg et al. 2014, arXiv 1405.3866.
    """

    @property
    def scheme(self) -> str:
        return "spatial"

    def unsupported(self, shape: Sequence[int]) -> str | None:
        if not separates(shape):
            return "needs a kernel longer than 1 along two axes"
        return None

    def factorize(
        self, weight: Tensor, metric: Metric | None = None, asked: Collection[int] = ()
    ) -> Factorization:
        if metric is None:
            return MatrixFactorization(weight, "spatial", fold_spatial, self.scheme)
        return RegressionFactorization(weight, "spatial", fold_spatial, self.scheme, metric)

    def factorize_at(
        self, weight: Tensor, metric: Metric, rank: Rank, known: Factorization | None = None
    ) -> Factorization:
        assert isinstance(rank, int)
        how = ("spatial", fold_spatial, self.scheme)
        return RegressionFactorization(weight, *how, metric, only=rank)

    def stages(self, shape: Sequence[int], rank: Rank) -> tuple[Stage, ...]:
        assert isinstance(rank, int)
        out, inputs, first, *others = shape
        ones = (1,) * len(others)
        return Stage((rank, inputs, first, *ones)), Stage((out, rank, 1, *others))
