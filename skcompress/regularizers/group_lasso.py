"""Group lasso: sparsity of whole channels."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import RegularizerValueError
from ..spaces import Options, SearchSpace
from .closed_form import ClosedForm
from .norms import norms


class GroupLasso(ClosedForm):
    """Sum of the norms of channels, each times the root of its size.

    Drives whole output channels (filters), or all that reads an input channel, to zero.
    The proximal step shortens every channel and stops at zero.

    weight : float >= 0
        Strength with which the penalty enters the loss.
    axis : {"out", "in"}
        Which channels are the groups.
    every, layers, exclude
        As for :class:`~skcompress.protocols.Regularizer`.

    >>> float(GroupLasso().penalty(torch.tensor([[1.0, 2.0, 2.0, 4.0], [0.0, 0.0, 0.0, 0.0]])))
    10.0

    References: Yuan & Lin 2006; Wen et al. 2016, arXiv 1608.03665.
    """

    search_space: ClassVar[SearchSpace] = {"axis": Options(("out", "in"))}

    def __init__(
        self,
        weight: float = 1e-4,
        *,
        axis: str = "out",
        every: int = 1,
        layers: Any = None,
        exclude: Any = (),
    ):
        super().__init__(weight, every=every, layers=layers, exclude=exclude)
        self.axis = axis

    def evaluate(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        sizes, root = self._sizes(weight)
        inverse = torch.where(sizes > 0, root / sizes, torch.zeros_like(sizes))
        return root * sizes.sum(), weight * inverse

    def prox(self, weight: Tensor, step: float) -> Tensor:
        sizes, root = self._sizes(weight)
        kept = torch.where(sizes > step * root, 1 - step * root / sizes, torch.zeros_like(sizes))
        return weight * kept

    def _sizes(self, weight: Tensor) -> tuple[Tensor, float]:
        """Norm of each channel, ready to multiply `weight`, and the root of its size."""
        if self.axis not in ("out", "in"):
            raise RegularizerValueError("GroupLasso", "axis", "'out' or 'in'", self.axis)
        channel = ("out", "in").index(self.axis)
        others = tuple(a for a in range(weight.dim()) if a != channel)
        found = norms(weight, others)
        return found, (weight.numel() / max(1, found.numel())) ** 0.5
