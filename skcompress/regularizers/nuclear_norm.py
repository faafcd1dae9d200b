"""Nuclear norm: the convex surrogate of rank."""

from __future__ import annotations

import torch
from torch import Tensor

from ..linalg import polar_factor, spectrum
from .spectral import Spectral


class NuclearNorm(Spectral):
    """Sum of the singular values of the unfolded weight.

    The gradient is the polar factor U V^T, from the eigenproblem of the smaller Gram
    matrix; nothing is differentiated. The proximal step subtracts from every singular
    value and stops at zero (singular value thresholding).

    weight : float >= 0
        Strength with which the penalty enters the loss.
    scheme : {"output", "input", "spatial"}
        Which matrix a convolution is unfolded to: the one by which it will be compressed.
    every, layers, exclude
        As for :class:`~skcompress.protocols.Regularizer`.

    >>> reg = NuclearNorm(weight=1e-3, every=4)
    >>> loss = torch.zeros(()) + reg(torch.nn.Linear(8, 4))
    >>> float(NuclearNorm().penalty(torch.diag(torch.tensor([3.0, 4.0]))))
    7.0

    References: Fazel 2002; Cai, Candes & Shen 2010, arXiv 0810.3286 (proximal step);
    Xu et al. 2020, arXiv 2004.14566; Runkel et al. 2025, arXiv 2505.24469.
    """

    def spectral(self, short: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        polar = polar_factor(short)
        return polar.nuclear, polar.left, polar.right

    def prox(self, weight: Tensor, step: float) -> Tensor:
        unfolded = self._unfold(weight)
        return unfolded.fold(shrink(unfolded.short, step))


def shrink(short: Tensor, threshold: float) -> Tensor:
    """Subtract `threshold` from the singular values of a matrix (m, n), stopping at zero."""
    found = spectrum(short)
    values = found.values
    ratios = torch.where(values > threshold, 1 - threshold / values, torch.zeros_like(values))
    return found.multiplier(ratios) @ short
