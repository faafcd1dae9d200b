"""Finite differences between neighbouring channels: how rough a weight is."""

from __future__ import annotations

from torch import Tensor

from ..protocols import Regularizer


def squared_differences(weight: Tensor, order: int) -> Tensor:
    """Sum of squared differences of `order` along the output and input channel axes.

    weight : Tensor of shape (out, in, *kernel)
    An axis that is too short for a difference adds nothing.
    """
    total = weight.new_zeros(())
    for axis in (0, 1):
        if weight.shape[axis] > order:
            total = total + weight.diff(n=order, dim=axis).square().sum()
    return total


class FirstDifference(Regularizer):
    """Squared differences between neighbouring channels, along outputs and inputs.

    Our reading of the first-order penalty of Runkel et al. 2025, arXiv 2505.24469, whose
    exact axes and powers we could not find. A network trained from scratch chooses its
    channel order under it.

    weight : strength with which the penalty enters the loss

    >>> float(FirstDifference().penalty(torch.tensor([[0.0, 1.0], [2.0, 3.0]])))
    10.0
    """

    def penalty(self, weight: Tensor) -> Tensor:
        return squared_differences(weight, 1)


class SecondDifference(Regularizer):
    """Squared second differences between channels, along outputs and inputs.

    Zero where channels change linearly. Our reading of the second-order penalty of
    Runkel et al. 2025, arXiv 2505.24469.

    weight : strength with which the penalty enters the loss

    >>> float(SecondDifference().penalty(torch.tensor([[0.0], [1.0], [4.0]])))
    4.0
    """

    def penalty(self, weight: Tensor) -> Tensor:
        return squared_differences(weight, 2)
