"""Soft orthogonality: rows that neither overlap nor differ in length."""

from __future__ import annotations

from torch import Tensor

from .spectral import Spectral


class Orthogonality(Spectral):
    """Squared distance |W W^T - I|^2 from orthonormal rows, or columns where they are fewer.

    The opposite of a smoothness penalty: it drives all singular values to 1. Of use on
    factors, whose condition it keeps good while they are trained.

    weight, scheme, every, layers, exclude
        As for :class:`~skcompress.NuclearNorm`.

    >>> float(Orthogonality().penalty(torch.eye(3, 5)))
    0.0

    Reference: Bansal, Chen & Wang 2018, arXiv 1810.09102.
    """

    def spectral(self, short: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        excess = short @ short.mT
        excess.diagonal(dim1=-2, dim2=-1).sub_(1)
        return excess.square().sum((-2, -1)), 4 * excess, short
