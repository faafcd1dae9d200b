"""Size of a number times size of what it is multiplied with."""

from __future__ import annotations

from torch import Tensor

from ..protocols import DataCriterion, Evidence


class Wanda(DataCriterion):
    """w_j^2 E[x_j^2]: what the layer's outputs lose, in the mean square, by one number alone.

    The square of the score |w_j| ||x_j|| of the paper, whose order is the same. Of an embedding,
    x is how often a row is looked up.

    References: Sun et al. 2023, arXiv 2306.11695.

    >>> import torch
    >>> seen = Evidence(gram=torch.diag(torch.tensor([4.0, 1.0])))
    >>> Wanda().scores(torch.tensor([[1.0, -3.0]]), seen)
    tensor([[4., 9.]])
    """

    needs = ("gram",)

    def scores(self, weight: Tensor, evidence: Evidence) -> Tensor:
        return weight.square() * evidence.input_power(weight)
