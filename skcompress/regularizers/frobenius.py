"""Frobenius norm: weight decay as a penalty."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .closed_form import ClosedForm
from .norms import norms


class FrobeniusNorm(ClosedForm):
    """Sum of squares of the weight, or its root.

    The baseline that any smoothness penalty has to beat: weight decay alone already makes
    networks easier to compress.

    weight : float >= 0
        Strength with which the penalty enters the loss.
    squared : bool
        Squares, as weight decay; False is the norm itself, which has no scale of its own
        and can drive a whole layer to zero.
    every, layers, exclude
        As for :class:`~skcompress.protocols.Regularizer`.

    >>> float(FrobeniusNorm().penalty(torch.tensor([[3.0, 4.0]])))
    25.0

    Reference: Krogh & Hertz 1991.
    """

    def __init__(
        self,
        weight: float = 1e-4,
        *,
        squared: bool = True,
        every: int = 1,
        layers: Any = None,
        exclude: Any = (),
    ):
        super().__init__(weight, every=every, layers=layers, exclude=exclude)
        self.squared = squared

    def evaluate(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        if self.squared:
            return torch.linalg.vector_norm(weight).square(), 2 * weight
        norm = self._norm(weight)
        return norm, weight / torch.where(norm > 0, norm, torch.ones_like(norm))

    def prox(self, weight: Tensor, step: float) -> Tensor:
        if self.squared:
            return weight / (1 + 2 * step)
        norm = self._norm(weight)
        return weight * torch.where(norm > step, 1 - step / norm, torch.zeros_like(norm))

    def _norm(self, weight: Tensor) -> Tensor:
        return norms(weight, tuple(range(weight.dim()))).reshape(())
