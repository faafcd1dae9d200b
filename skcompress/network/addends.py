"""What the outputs of layers are added to, as at the end of a residual block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# A channel that is multiplied by less, relative to the largest, cannot make up for anything.
_LEAST = 1e-3


@dataclass(frozen=True)
class Place:
    """Where a tensor passes: given to a module as its first argument, or given by it."""

    module: str
    output: bool


@dataclass(frozen=True)
class Addend:
    """The other term of the sum that alone reads the outputs of a layer.

    place : where it passes before the layer is called
    scale : float64 (out,), what the outputs are multiplied by before; None for nothing
    """

    place: Place
    scale: Tensor | None

    def missing(self, before: Tensor, now: Tensor) -> Tensor:
        """What outputs (batch, out, ...) have to make up for, when the addend has changed.

        Where nothing is in between, of any shape.
        """
        gap = before - now
        if self.scale is None:
            return gap
        scale = self.scale.to(gap)
        usable = scale.abs() >= _LEAST * scale.abs().max()
        factor = torch.where(usable & (scale != 0), scale, torch.inf).reciprocal()
        return gap * factor.reshape(-1, *(1,) * (gap.dim() - 2))
