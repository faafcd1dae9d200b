"""Schatten norms: sums of powers of singular values."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import RegularizerValueError
from ..linalg import spectrum
from ..spaces import FloatRange, SearchSpace
from .spectral import Spectral


class SchattenNorm(Spectral):
    """Sum of s^p over the singular values s, rounded off near zero.

    p = 1 is the nuclear norm, p = 2 the squared Frobenius norm; p < 1 comes closer to
    counting singular values, and is not convex. Each term is (s^2 + e^2)^(p/2) - e^p with
    e = `epsilon`: without it, the gradient at s = 0 would be infinite for p < 1.

    weight : float >= 0
        Strength with which the penalty enters the loss.
    p : float > 0
        The power.
    epsilon : float > 0
        In units of singular values.
    scheme, every, layers, exclude
        As for :class:`~skcompress.NuclearNorm`.

    >>> round(float(SchattenNorm(p=2).penalty(3 * torch.eye(2))), 4)
    18.0

    Reference: Nie, Huang & Ding 2012 (Schatten-p norms for p < 1).
    """

    search_space: ClassVar[SearchSpace] = {"p": FloatRange(0.2, 1.0)}

    def __init__(
        self,
        weight: float = 1e-4,
        *,
        p: float = 0.5,
        epsilon: float = 1e-3,
        scheme: str = "output",
        every: int = 1,
        layers: Any = None,
        exclude: Any = (),
    ):
        super().__init__(weight, scheme=scheme, every=every, layers=layers, exclude=exclude)
        self.p = p
        self.epsilon = epsilon

    def spectral(self, short: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        for name in ("p", "epsilon"):
            if not getattr(self, name) > 0:
                raise RegularizerValueError("SchattenNorm", name, "> 0", getattr(self, name))
        found = spectrum(short)
        epsilon = found.values.new_tensor(self.epsilon)
        rounded = torch.hypot(found.values, epsilon)
        value = (rounded**self.p - epsilon**self.p).clamp(min=0).sum(-1)
        # Of W divided by its size where that is large, whose powers would leave float32.
        size = rounded[..., -1:].clamp(min=1)
        ratios = self.p * (rounded / size) ** (self.p - 2) * size ** (self.p - 1)
        return value, found.multiplier(ratios), short / size[..., None]
