"""What both decompositions are for a weight without kernel: the truncated SVD."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from skcompress.linalg import balanced_factors, leading_subspace, tail_energies
from skcompress.protocols import Curve, Factorization, Factors, Rank, Spectrum, Stage


def long_axes(shape: Sequence[int]) -> list[int]:
    """Kernel axes of a weight (out, in, *kernel) that are longer than 1, from 0."""
    return [axis for axis, size in enumerate(shape[2:]) if size > 1]


def matrix_stages(shape: Sequence[int], rank: int) -> tuple[Stage, ...]:
    """Shapes of the two factors of a weight (out, in, 1, ...)."""
    out, inputs, *ones = shape
    return Stage((rank, inputs, *ones)), Stage((out, rank, *ones))


class TruncatedSVD(Factorization):
    """A weight (out, in, 1, ...) as two factors, optimal at every rank."""

    def __init__(self, weight: Tensor, scheme: str):
        out, inputs = weight.shape[:2]
        values, vectors = leading_subspace(weight.flatten(1))
        ranks = np.arange(1, len(values) + 1)
        self._basis = vectors.to(weight.dtype)
        self.curve = Curve(
            scheme=scheme,
            ranks=ranks,
            costs=ranks * (out + inputs),
            errors=tail_energies(values).cpu().numpy(),
            total=float(values.square().sum()),
            full_rank=len(values),
            spectra=(Spectrum(values.cpu().numpy(), (out, inputs)),),
        )

    def factors(self, weight: Tensor, rank: Rank) -> Factors:
        assert isinstance(rank, int)
        left, right = balanced_factors(weight.flatten(1), self._basis[:, :rank])
        first, second = matrix_stages(weight.shape, rank)
        return Factors((right.reshape(first.shape), left.reshape(second.shape)), (1, 1))

    def trim(self, rank: Rank) -> TruncatedSVD:
        assert isinstance(rank, int)
        result = copy.copy(self)
        result._basis = self._basis[:, :rank].clone()
        return result
