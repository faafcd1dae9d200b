"""The absolute value."""

from __future__ import annotations

from torch import Tensor

from ..protocols import Criterion


class Magnitude(Criterion):
    """A number matters as much as it is large: |w|.

    Under a budget of the whole model layers of small weights lose most, whatever they do: keep a
    share of each, as `min_kept` does (Global MP, arXiv 2209.14624).

    References: Han et al. 2015, arXiv 1506.02626.

    >>> import torch
    >>> Magnitude().scores(torch.tensor([[1.0, -2.0]]))
    tensor([[1., 2.]])
    """

    def scores(self, weight: Tensor) -> Tensor:
        return weight.abs()
