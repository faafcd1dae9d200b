"""First-order change of the loss."""

from __future__ import annotations

from torch import Tensor

from ..protocols import DataCriterion, Evidence


class Taylor(DataCriterion):
    """|w E[g]|: how much the loss changes, to first order, when a number becomes zero.

    The loss is that of the class which the network itself finds most probable, so that no labels
    are needed. One backward pass.

    References: Molchanov et al. 2017, arXiv 1611.06440, and 2019, arXiv 1906.10771.

    >>> import torch
    >>> Taylor().scores(torch.tensor([[1.0, -2.0]]), Evidence(gradient=torch.tensor([[0.5, 0.5]])))
    tensor([[0.5000, 1.0000]])
    """

    needs = ("gradient",)

    def scores(self, weight: Tensor, evidence: Evidence) -> Tensor:
        assert evidence.gradient is not None
        return (weight * evidence.gradient.to(weight)).abs()
