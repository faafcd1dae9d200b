"""Penalties whose gradient is known, so that nothing is differentiated to get it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..protocols import Regularizer


class ClosedForm(Regularizer):
    """Base of penalties that compute their value and gradient side by side.

    A subclass writes `evaluate`; `penalty` is then differentiable through it, once.
    """

    @abstractmethod
    def evaluate(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Give the penalty, a scalar, and its gradient, of the shape of `weight`.

        weight : float32 or float64 Tensor of shape (out, in, *kernel), without a graph
        """

    def penalty(self, weight: Tensor) -> Tensor:
        return _Evaluated.apply(weight, self.evaluate)

    def gradient(self, weight: Tensor) -> Tensor:
        return self.evaluate(weight)[1]


class _Evaluated(torch.autograd.Function):
    """Carries a gradient in closed form into the graph of a loss."""

    @staticmethod
    def forward(ctx, weight: Tensor, evaluate: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        # Inside an autocast region products would silently be computed in half precision.
        with torch.autocast(weight.device.type, enabled=False):
            work = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
            value, gradient = evaluate(work)
        ctx.save_for_backward(gradient)
        ctx.dtype = weight.dtype
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return (grad * gradient).to(ctx.dtype), None
