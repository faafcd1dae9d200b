"""Hoyer's squared measure of sparsity, of the singular values."""

from __future__ import annotations

from torch import Tensor

from .nuclear_ratio import nuclear_ratio
from .spectral import Spectral


class HoyerSpectrum(Spectral):
    """Squared sum over sum of squares of the singular values: an effective rank.

    It counts singular values: k of them, equal, give k, whatever their scale; a rapidly
    falling spectrum gives less. The square of :class:`~skcompress.NuclearRatio`, which
    pulls in proportion to the ratio that is left. Zero for a zero weight.

    weight, scheme, every, layers, exclude
        As for :class:`~skcompress.NuclearNorm`.

    >>> float(HoyerSpectrum().penalty(5 * torch.eye(4)))
    4.0

    References: Yang, Wen & Li 2020, arXiv 1908.09979 (Hoyer-square); Yang et al. 2020,
    arXiv 2004.09031 (of singular values).
    """

    def spectral(self, short: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ratio, left, right = nuclear_ratio(short)
        return ratio.square(), 2 * ratio[..., None, None] * left, right
