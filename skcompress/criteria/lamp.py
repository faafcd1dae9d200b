"""Layer-adaptive magnitude: what a number is of all that is not smaller in its layer."""

from __future__ import annotations

from torch import Tensor

from ..protocols import Criterion
from ..ranking import relative


class LAMP(Criterion):
    """w^2 divided by the sum of the squares that are not smaller, within the weight.

    That is the share of what would be left of the weight if all smaller numbers were gone. Within
    a weight the order is that of magnitudes; of every weight the largest number scores 1, so that
    under a budget of the whole model none vanishes. Exact for the 65,536 largest numbers of a
    weight; the others are off by a few 1e-4 of their score (:func:`skcompress.ranking.relative`).

    References: Lee et al. 2021, arXiv 2010.07611.

    >>> import torch
    >>> LAMP().scores(torch.tensor([[1.0, -2.0]]))
    tensor([[0.2000, 1.0000]])
    """

    def scores(self, weight: Tensor) -> Tensor:
        least, most = weight.aminmax()
        largest = max(-float(least), float(most))
        # Squares of numbers of any size are to stay within the range of float32.
        if largest > 0 and not 1e-12 < largest < 1e18:
            weight = weight / largest
        return relative(weight.square())
