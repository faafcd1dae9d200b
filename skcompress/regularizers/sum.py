"""Several penalties as one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..protocols import Regularizer


class SumRegularizer(Regularizer):
    """Sum of penalties, each with its own strength, layers and rhythm; what `a + b` gives.

    regularizers : the summands
    weight : float, multiplies the strengths of all of them

    >>> from skcompress import FirstDifference, NuclearNorm
    >>> both = NuclearNorm(1e-3, every=4) + FirstDifference(1e-2)
    >>> half = 0.5 * both
    >>> half.weight
    0.5
    """

    def __init__(self, regularizers: tuple[Regularizer, ...], weight: float = 1.0):
        super().__init__(weight)
        self.regularizers = regularizers

    def penalty(self, weight: Tensor) -> Tensor:
        penalties = [r.weight * r.penalty(weight) for r in self.regularizers]
        return torch.stack(penalties).sum()
