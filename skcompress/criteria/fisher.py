"""Second-order change of the network's outputs."""

from __future__ import annotations

from torch import Tensor

from ..protocols import DataCriterion, Evidence


class Fisher(DataCriterion):
    """w^2 E[g^2] / 2: how far the outputs move, to second order, when a number becomes zero.

    In nats of the Kullback-Leibler divergence: E[g^2] is the diagonal of the Fisher information,
    for labels that the network draws from its own outputs. Scores of all layers are in the same
    unit.

    References: LeCun et al. 1990 (optimal brain damage); Theis et al. 2018, arXiv 1801.05787.

    >>> import torch
    >>> Fisher().scores(torch.tensor([[1.0, -2.0]]), Evidence(fisher=torch.tensor([[2.0, 2.0]])))
    tensor([[1., 4.]])
    """

    needs = ("fisher",)

    def scores(self, weight: Tensor, evidence: Evidence) -> Tensor:
        assert evidence.fisher is not None
        return weight.square() * (evidence.fisher.to(weight) / 2)
