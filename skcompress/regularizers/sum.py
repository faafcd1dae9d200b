"""Several penalties as one."""

from __future__ import annotations

from torch import Tensor

from ..protocols import Regularizer


class SumRegularizer(Regularizer):
    """Sum of penalties, each with its own strength; what `a + b` gives.

    regularizers : the summands
    weight : strength of the sum as a whole
    """

    def __init__(self, regularizers: tuple[Regularizer, ...], weight: float = 1.0):
        super().__init__(weight)
        self.regularizers = regularizers

    def penalty(self, weight: Tensor) -> Tensor:
        total = weight.new_zeros(())
        for regularizer in self.regularizers:
            total = total + regularizer.weight * regularizer.penalty(weight)
        return total
