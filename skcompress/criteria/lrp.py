"""Relevance: how much of what the network says comes through each number."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ..protocols import DataCriterion, Evidence


class LRP(DataCriterion):
    """|E[R]|: the relevance that layer-wise propagation finds to flow through a number.

    The output for the most probable class is handed back layer by layer, to each number in
    proportion to what it contributed; `skcompress.calibration.relevance` says by which rules.

    References: Yeom et al. 2021, arXiv 1912.08881 (Pruning by Explaining); Bach et al. 2015,
    doi 10.1371/journal.pone.0130140.

    >>> import torch
    >>> seen = Evidence(relevance=torch.tensor([[0.5, -0.1]]))
    >>> LRP().scores(torch.tensor([[1.0, -2.0]]), seen)
    tensor([[0.5000, 0.1000]])
    """

    needs: ClassVar[tuple[str, ...]] = ("relevance",)

    def scores(self, weight: Tensor, evidence: Evidence) -> Tensor:
        assert evidence.relevance is not None
        return evidence.relevance.to(weight).abs()
