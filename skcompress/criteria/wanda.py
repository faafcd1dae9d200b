"""Size of a number times size of what it is multiplied with."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..protocols import DataCriterion, Evidence
from ..spaces import Options, SearchSpace


def ranks_in_rows(scores: Tensor) -> Tensor:
    """Replace scores (out, in, *kernel) by the share of their row that is no larger, in [0, 1].

    Scores of zero stay zero; of equal ones, later ones count as larger.
    """
    rows = scores.flatten(1)
    order = rows.argsort(dim=1, stable=True)
    places = torch.arange(1, rows.shape[1] + 1, dtype=rows.dtype, device=rows.device)
    shares = torch.empty_like(rows).scatter_(1, order, (places / rows.shape[1]).expand_as(rows))
    return (shares * (rows > 0)).reshape(scores.shape)


class Wanda(DataCriterion):
    """w_j^2 E[x_j^2]: what the layer's outputs lose, in the mean square, by one number alone.

    The square of the score |w_j| ||x_j|| of the paper, whose order is the same. Of an embedding,
    x is how often a row is looked up.

    per_output : compare numbers with those of the same output only, as the paper does: a number
        then scores the share of its row that is no larger. With ``allocation="uniform"`` every
        output of every layer keeps the same share, to one number.

    References: Sun et al. 2023, arXiv 2306.11695.

    >>> import torch
    >>> seen = Evidence(gram=torch.diag(torch.tensor([4.0, 1.0])))
    >>> weight = torch.tensor([[1.0, -3.0], [0.1, 0.1]])
    >>> Wanda().scores(weight, seen)
    tensor([[4.0000, 9.0000],
            [0.0400, 0.0100]])
    >>> Wanda(per_output=True).scores(weight, seen)
    tensor([[0.5000, 1.0000],
            [1.0000, 0.5000]])
    """

    needs = ("gram",)
    search_space: ClassVar[SearchSpace] = {"per_output": Options((False, True))}

    def __init__(self, per_output: bool = False):
        self.per_output = per_output

    def scores(self, weight: Tensor, evidence: Evidence) -> Tensor:
        lost = weight.square() * evidence.input_power(weight)
        return ranks_in_rows(lost) if self.per_output else lost
