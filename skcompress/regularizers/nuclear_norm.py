"""Nuclear norm: the convex surrogate of rank."""

from __future__ import annotations

import torch
from torch import Tensor

from ..protocols import Regularizer


class NuclearNorm(Regularizer):
    """Sum of the singular values of the weight unfolded to (out, in * kernel).

    weight : strength with which the penalty enters the loss

    >>> reg = NuclearNorm(weight=1e-4)
    >>> loss = torch.zeros(()) + reg(torch.nn.Linear(8, 4))

    References: Fazel 2002; Runkel et al. 2025, arXiv 2505.24469.
    """

    def penalty(self, weight: Tensor) -> Tensor:
        return nuclear_norm(weight.flatten(1))


class _NuclearNorm(torch.autograd.Function):
    """Nuclear norm whose gradient is the polar factor U V^T.

    Differentiating through an SVD divides by differences of singular values and breaks
    down at repeated and vanishing ones; the polar factor exists everywhere.
    """

    @staticmethod
    def forward(ctx, matrix: Tensor) -> Tensor:
        work = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        left, values, right = torch.linalg.svd(work, full_matrices=False)
        # Directions without energy take part in no gradient: the subgradient of least norm.
        floor = values[..., :1] * (max(work.shape) * torch.finfo(work.dtype).eps)
        used = (values > floor).to(work.dtype)
        ctx.save_for_backward((left * used) @ right)
        return values.sum(-1).to(matrix.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (polar,) = ctx.saved_tensors
        return grad * polar.to(grad.dtype)


def nuclear_norm(matrix: Tensor) -> Tensor:
    """Sum of singular values of a matrix (m, n), with the polar factor as gradient."""
    return _NuclearNorm.apply(matrix)
