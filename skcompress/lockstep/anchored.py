"""Moments of what a layer gave in one network, with what it is given in another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..layers import Slot
from ..layers.inputs import Inputs
from ..precision import full_precision
from ..protocols.metric import counted
from ..statistics.moments import add_squares, draw, mirror, piece_size, weighted_columns

InputsBySlot = dict[str, Inputs]


@dataclass(frozen=True)
class Anchored:
    """Moments of outputs y = W x of an original layer with inputs x' of its successor.

    gram : (groups, n, n), E[x' x'^T]; cross : (groups, out, n), E[y x'^T]
    energy : (groups, out), E[(R y)^2]
    inputs : (groups, n), E[x']; outputs : (groups, out), E[y]; all float64
    roots : R of each group, (out, out) or its diagonal (out,); None for 1
    """

    gram: Tensor
    cross: Tensor
    energy: Tensor
    inputs: Tensor
    outputs: Tensor
    roots: tuple[Tensor | None, ...]

    def centred(self) -> Anchored:
        """Take the means off, for a layer whose bias makes up for them."""
        return Anchored(
            self.gram - self.inputs[:, :, None] * self.inputs[:, None],
            self.cross - self.outputs[:, :, None] * self.inputs[:, None],
            self.energy - _seen(self.roots, self.outputs[:, :, None])[:, :, 0].square(),
            self.inputs,
            self.outputs,
            self.roots,
        )


class AnchoredSum:
    """Sums over calls: in float32 within a piece of positions, in float64 over pieces.

    slot : the weight; roots : see `Anchored`
    max_positions : of one call, how many are used at most
    """

    def __init__(
        self,
        slot: Slot,
        max_positions: int | None,
        generator: torch.Generator,
        roots: Sequence[Tensor | None] | None = None,
    ):
        self._max_positions = max_positions
        self._generator = generator
        weight = slot.read().detach().flatten(2)
        self._weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        groups, out, n = weight.shape
        self._roots = tuple(roots or [None] * groups)
        like: dict[str, Any] = {"device": weight.device, "dtype": torch.float64}
        self._gram = torch.zeros(groups, n, n, **like)
        self._sums = (
            torch.zeros(groups, out, n, **like),
            torch.zeros(groups, out, **like),
            torch.zeros(groups, n, **like),
            torch.zeros(groups, out, **like),
        )
        self._count = torch.zeros(groups, **like)

    def add(
        self,
        before: Inputs,
        after: Inputs,
        mask: Tensor | None,
        weights: Tensor | None = None,
        missing: Tensor | None = None,
    ) -> None:
        """Add one call.

        mask : (batch, sequence), False at padding; weights : (batch,)
        missing : (groups, out, positions), what the outputs are to give besides
        """
        index, seen, used = draw(after, mask, self._max_positions, self._generator)
        if not seen:
            return
        share = seen / used  # what each of those drawn stands for
        device = self._weight.device
        size = piece_size(device)
        of = slice(None) if after.group is None else slice(after.group, after.group + 1)
        weight = self._weight[of]
        start = 0
        if missing is not None and index is not None:
            missing = missing[:, :, index.to(missing.device)]
        pairs = zip(
            before.columns(index, size),
            weighted_columns(after, index, size, weights),
            strict=True,
        )
        with torch.autocast(device.type, enabled=False), full_precision():
            for x, (raw, w) in pairs:
                y, new = weight @ x.to(weight.dtype), raw.to(weight.dtype)
                if missing is not None:
                    y += missing[:, :, start : start + y.shape[2]].to(y)
                    start += y.shape[2]
                add_squares(self._gram[of], new if w is None else new * w.sqrt(), share)
                y_w, new_w = (y, new) if w is None else (y * w, new * w)
                energy = _seen(self._roots[of], y if w is None else y * w.sqrt()).square().sum(2)
                parts = (y_w @ new.mT, energy, new_w.sum(2), y_w.sum(2))
                for total, part in zip(self._sums, parts, strict=True):
                    total[of].add_(part.to(total.device), alpha=share)
                self._count[of] += (new.shape[2] if w is None else float(w.sum())) * share

    @property
    def reached(self) -> bool:
        """Whether there was any input."""
        return bool(self._count.any())

    def result(self) -> Anchored:
        """Divide by the numbers of positions, or by their weights; the sums are used up."""
        count = torch.where(self._count > 0, self._count, 1.0)
        sums = (mirror(self._gram), *self._sums)
        gram, cross, energy, inputs, outputs = (
            t.div_(count.reshape(-1, *(1,) * (t.dim() - 1))) for t in sums
        )
        return Anchored(gram, cross, energy, inputs, outputs, self._roots)


def _seen(roots: Sequence[Tensor | None], y: Tensor) -> Tensor:
    """R y of each group, for y (groups, out, any)."""
    if all(root is None for root in roots):
        return y
    same = (None if root is None else root.to(y) for root in roots)
    return torch.stack([counted(root, part) for root, part in zip(same, y, strict=True)])
