"""Log-determinant: a smooth, non-convex surrogate of rank."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import RegularizerValueError
from ..linalg import spectrum
from ..spaces import FloatRange, SearchSpace
from .spectral import Spectral


class LogDet(Spectral):
    """log det(I + W W^T / epsilon): the sum of log(1 + s^2 / epsilon) of singular values s.

    It pulls on small singular values more than on large ones, as rank itself would; the
    gradient is 2 (W W^T + epsilon I)^-1 W.

    weight : float >= 0
        Strength with which the penalty enters the loss.
    epsilon : float > 0
        In units of squared singular values: those well below it count as zero.
    scheme, every, layers, exclude
        As for :class:`~skcompress.NuclearNorm`.

    >>> round(float(LogDet(epsilon=1.0).penalty(torch.eye(2))), 4)
    1.3863

    Reference: Fazel, Hindi & Boyd 2003.
    """

    search_space: ClassVar[SearchSpace] = {"epsilon": FloatRange(1e-4, 1.0, log=True)}

    def __init__(
        self,
        weight: float = 1e-4,
        *,
        epsilon: float = 1e-2,
        scheme: str = "output",
        every: int = 1,
        layers: Any = None,
        exclude: Any = (),
    ):
        super().__init__(weight, scheme=scheme, every=every, layers=layers, exclude=exclude)
        self.epsilon = epsilon

    def spectral(self, short: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self.epsilon > 0:
            raise RegularizerValueError("LogDet", "epsilon", "> 0", self.epsilon)
        found = spectrum(short)
        # Of large numbers the squares leave float32: log(1 + x^2) = 2 log x + log(1 + 1 / x^2).
        x = found.values / self.epsilon**0.5
        value = torch.where(x > 1, 1 / x, x).square().log1p() + 2 * x.clamp(min=1).log()
        # For the same reason the gradient is that of W divided by its size where that is large.
        size = found.values[..., -1:].clamp(min=1)
        energies = (found.values / size).square() + self.epsilon / size / size
        ratios = 2 / size / energies.clamp(min=torch.finfo(short.dtype).tiny)
        return value.sum(-1), found.multiplier(ratios), short / size[..., None]
