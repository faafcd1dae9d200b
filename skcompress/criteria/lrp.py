"""Relevance: how much of what the network says comes through each number."""

from __future__ import annotations

from torch import Tensor

from ..errors import CriterionValueError
from ..protocols import DataCriterion, Evidence

_FIELDS = {"epsilon": "relevance", "positive": "positive_relevance"}


class LRP(DataCriterion):
    """|E[R]|: the relevance that layer-wise propagation finds to flow through a number.

    The output for the most probable class is handed back layer by layer, to each number in
    proportion to what it contributed; `skcompress.statistics.relevance` has the rules.

    rule : "epsilon", for contributions of both signs; or "positive", the paper's for convolutions:
        numbers that never contribute to the positive part of an output, such as all negative ones
        after a ReLU, go first

    References: Yeom et al. 2021, arXiv 1912.08881 (Pruning by Explaining); Bach et al. 2015,
    doi 10.1371/journal.pone.0130140.

    >>> import torch
    >>> seen = Evidence(relevance=torch.tensor([[0.5, -0.1]]))
    >>> LRP().scores(torch.tensor([[1.0, -2.0]]), seen)
    tensor([[0.5000, 0.1000]])
    """

    def __init__(self, rule: str = "epsilon"):
        self.rule = rule

    @property
    def needs(self) -> tuple[str, ...]:
        if self.rule not in _FIELDS:
            raise CriterionValueError("LRP", "rule", "'epsilon' or 'positive'", self.rule)
        return (_FIELDS[self.rule],)

    def scores(self, weight: Tensor, evidence: Evidence) -> Tensor:
        relevance: Tensor = getattr(evidence, *self.needs)
        return relevance.to(weight).abs()
