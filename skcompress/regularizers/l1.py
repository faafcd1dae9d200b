"""L1 norm: sparsity of single weights."""

from __future__ import annotations

from torch import Tensor

from .closed_form import ClosedForm


class L1Norm(ClosedForm):
    """Sum of magnitudes: drives single weights to zero, for pruning.

    The proximal step, soft thresholding, makes zeros that are exactly zero.

    weight, every, layers, exclude
        As for :class:`~skcompress.protocols.Regularizer`.

    >>> L1Norm().prox(torch.tensor([[3.0, -0.5]]), step=1.0)
    tensor([[2., -0.]])

    Reference: Tibshirani 1996.
    """

    def evaluate(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return weight.abs().sum(), weight.sign()

    def prox(self, weight: Tensor, step: float) -> Tensor:
        return weight.sign() * (weight.abs() - step).clamp_(min=0)
