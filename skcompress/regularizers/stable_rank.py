"""Stable rank: energy in units of the largest singular value."""

from __future__ import annotations

import torch
from torch import Tensor

from ..linalg import spectrum
from .spectral import Spectral


class StableRank(Spectral):
    """Squared Frobenius norm over squared spectral norm of the unfolded weight.

    At least 1 and at most the rank, blind to scale. The gradient is
    2 W / s^2 - 2 |W|^2 u v^T / s^3 with the largest singular value s and its vectors u, v:
    it raises that one while it lowers the others. Zero for a zero weight.

    weight, scheme, every, layers, exclude
        As for :class:`~skcompress.NuclearNorm`.

    >>> float(StableRank().penalty(torch.diag(torch.tensor([2.0, 1.0]))))
    1.25

    References: Rudelson & Vershynin 2007; Sanyal, Torr & Dokania 2020, arXiv 1906.04659.
    """

    def spectral(self, short: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = spectrum(short)
        largest = found.values[..., -1:]
        tiny = torch.finfo(short.dtype).tiny  # whose inverse is a number still
        inverse = torch.where(largest >= tiny, 1 / largest, torch.zeros_like(largest))
        relative = found.values * inverse
        value = relative.square().sum(-1)
        # 2 W / s^2 on all directions, less what the last loses by its part in the divisor; of
        # W / s, since the square of a large or small s is no number of float32.
        ratios = (2 * inverse).expand_as(relative).clone()
        ratios[..., -1] -= 2 * value * inverse[..., 0]
        return value, found.multiplier(ratios), short * inverse[..., None]
