"""Nuclear norm over Frobenius norm: how spread out the spectrum is, whatever its scale."""

from __future__ import annotations

import torch
from torch import Tensor

from ..linalg import polar_factor
from .spectral import Spectral


class NuclearRatio(Spectral):
    """Nuclear norm divided by the Frobenius norm of the unfolded weight.

    Between 1 (rank one) and the root of the full rank (all singular values equal). Blind to
    the scale of the weight, which BatchNorm makes meaningless: the nuclear norm itself can
    be made small by shrinking a weight that BatchNorm scales up again. Zero for a zero
    weight.

    weight, scheme, every, layers, exclude
        As for :class:`~skcompress.NuclearNorm`.

    >>> float(NuclearRatio().penalty(5 * torch.eye(4)))
    2.0

    References: Hoyer 2004 (the ratio of norms); Yang et al. 2020, arXiv 2004.09031 (of
    singular values).
    """

    def spectral(self, short: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return nuclear_ratio(short)


def nuclear_ratio(short: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ratio r (...) and the two parts of its gradient (P - r M / |M|) / |M|.

    P, of shape (..., m, n), is the polar factor of M.
    """
    polar = polar_factor(short)
    size = polar.frobenius[..., None, None]
    inverse = torch.where(size > 0, 1 / size, torch.zeros_like(size))
    ratio = polar.nuclear[..., None, None] * inverse
    return ratio[..., 0, 0], polar.left - ratio * polar.unit, polar.right * inverse
