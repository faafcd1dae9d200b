"""Other values for the weights of a layer, which stays the layer that it is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..protocols import LayerKind, Slot
from .reparametrized import make_plain


def slot_of(kind: LayerKind, module: nn.Module, name: str) -> Slot:
    """Find a weight of a module by the name of its slot."""
    return next(slot for slot in kind.slots(module) if slot.name == name)


@torch.no_grad()
def write_weights(kind: LayerKind, module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Write weights (groups, out, in, *kernel) into a layer, in place, by the name of the slot.

    A weight that was computed from other parameters becomes a parameter of its own.
    """
    make_plain(module)
    for name, value in values.items():
        # Slots are views of what stores them, transposed and cut up as they may be.
        slot_of(kind, module, name).read().detach().copy_(value)
