"""Moments of what a layer gave in one network, with what it is given in another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..layers import Slot
from ..precision import full_precision
from ..protocols import Dense, Inputs, SecondMoment
from ..protocols.metric import counted
from ..statistics.lagged import Signals
from ..statistics.moments import (
    SquareSum,
    draw,
    in_units,
    piece_size,
    typical,
    weighted_columns,
)

InputsBySlot = dict[str, Inputs]


@dataclass(frozen=True)
class Anchored:
    """Moments of outputs y = W x of an original layer with inputs x' of its successor.

    squares : of each group, E[x' x'^T] (n, n); cross : (groups, out, n), E[y x'^T]
    energy : (groups, out), E[(R y)^2]; of all three without the means, for a layer whose bias
        makes up for them
    inputs : (groups, n), E[x']; outputs : (groups, out), E[y]; all float64
    roots : R of each group, (out, out) or its diagonal (out,); None for 1
    """

    squares: tuple[SecondMoment, ...]
    cross: Tensor
    energy: Tensor
    inputs: Tensor
    outputs: Tensor
    roots: tuple[Tensor | None, ...]

    @property
    def gram(self) -> Tensor:
        """`squares` as matrices, (groups, n, n)."""
        return torch.stack([moment.dense for moment in self.squares])

    def mixed_with(self, other: Anchored, share: float) -> Anchored:
        """Moments of both sets of inputs together, where the others are so large a share.

        Both with the same roots.
        """
        between = (share * (1 - share)) ** 0.5
        of_inputs = between * (other.inputs - self.inputs)
        of_outputs = between * (other.outputs - self.outputs)
        squares = [
            Dense(torch.lerp(mine.dense, its.dense, share)).plus_square(gap)
            for mine, its, gap in zip(self.squares, other.squares, of_inputs, strict=True)
        ]
        cross = torch.lerp(self.cross, other.cross, share)
        energy = torch.lerp(self.energy, other.energy, share)
        return replace(
            self,
            squares=tuple(squares),
            cross=torch.baddbmm(cross, of_outputs[:, :, None], of_inputs[:, None]),
            energy=energy + _seen(self.roots, of_outputs[:, :, None])[:, :, 0].square(),
            inputs=torch.lerp(self.inputs, other.inputs, share),
            outputs=torch.lerp(self.outputs, other.outputs, share),
        )

    def with_means(self) -> Anchored:
        """Put the means in, for a layer where nothing makes up for them."""
        return replace(
            self,
            squares=tuple(m.plus_square(x) for m, x in zip(self.squares, self.inputs, strict=True)),
            cross=torch.baddbmm(self.cross, self.outputs[:, :, None], self.inputs[:, None]),
            energy=self.energy + _seen(self.roots, self.outputs[:, :, None])[:, :, 0].square(),
        )


class AnchoredSum:
    """Sums over calls: in float32 within a piece of positions, in float64 over pieces.

    All are of what is left once something like the means is taken off; see `typical`.

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
        self._squares = SquareSum(groups, n, weight.device)
        self._sums = (
            torch.zeros(groups, out, n, **like),
            torch.zeros(groups, out, **like),
            torch.zeros(groups, n, **like),
            torch.zeros(groups, out, **like),
        )
        self._count = torch.zeros(groups, **like)
        self._before, self._after = (torch.zeros(groups, n, **like) for _ in range(2))
        self._besides = torch.zeros(groups, out, **like)

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
        of = after.groups
        weight = self._weight[of]
        first = not self._count[of].any()
        if missing is not None and index is not None:
            missing = missing[:, :, index.to(missing.device)]
        if missing is not None and first:
            self._besides[of] = missing.mean(-1, dtype=torch.float64)
        signals = None
        if index is None and not self._squares.keeps(used):
            signals = Signals.of(after)
        start = 0
        pairs = zip(
            before.columns(index, size),
            weighted_columns(after, index, size, weights),
            strict=True,
        )
        with torch.autocast(device.type, enabled=False), full_precision():
            for old, (raw, w) in pairs:
                x, new = old.to(weight.dtype), raw.to(weight.dtype)
                if first:
                    self._before[of], self._after[of] = typical(before, x), typical(after, new)
                    first = False
                y = weight @ (x - self._before[of, :, None].to(x))
                new = new - self._after[of, :, None].to(new)
                if missing is not None:
                    besides = missing[:, :, start : start + y.shape[2]].to(y)
                    y += besides - self._besides[of, :, None].to(y)
                    start += y.shape[2]
                if signals is None:
                    self._squares.add(of, new, w, share)
                self._add(of, new, y, w, share)
            if signals is not None:
                self._squares.add_signals(signals, self._after, weights, share)

    def _add(
        self,
        of: slice,
        x: Tensor,
        y: Tensor,
        w: Tensor | None,
        share: float,
    ) -> None:
        """Add columns of inputs and of outputs; `w` (positions,) weighs them."""
        (x, of_x), (y, of_y) = in_units(x), in_units(y)
        y_w, x_w = (y, x) if w is None else (y * w, x * w)
        energy = _seen(self._roots[of], y if w is None else y * w.sqrt()).square().sum(2)
        parts = (y_w @ x.mT, energy, x_w.sum(2), y_w.sum(2))
        scales = (of_x * of_y, of_y**2, of_x, of_y)
        for total, part, scale in zip(self._sums, parts, scales, strict=True):
            total[of].add_(part.to(total.device), alpha=share * scale)
        self._count[of] += (x.shape[2] if w is None else float(w.sum())) * share

    @property
    def reached(self) -> bool:
        """Whether there was any input."""
        return bool(self._count.any())

    def result(self) -> Anchored:
        """Divide by the numbers of positions, or by their weights; the sums are used up."""
        count = torch.where(self._count > 0, self._count, 1.0)
        cross, energy, inputs, outputs = (
            t.div_(count.reshape(-1, *(1,) * (t.dim() - 1))) for t in self._sums
        )
        # What was taken off is not quite the mean.
        squares = self._squares.covariances(count, inputs)
        cross.baddbmm_(outputs[:, :, None], inputs[:, None], alpha=-1)
        energy -= _seen(self._roots, outputs[:, :, None])[:, :, 0].square()
        given = (self._weight.to(self._before) @ self._before[:, :, None])[:, :, 0]
        outputs += given + self._besides
        return Anchored(squares, cross, energy, inputs + self._after, outputs, self._roots)


def _seen(roots: Sequence[Tensor | None], y: Tensor) -> Tensor:
    """R y of each group, for y (groups, out, any)."""
    if all(root is None for root in roots):
        return y
    same = (None if root is None else root.to(y) for root in roots)
    return torch.stack([counted(root, part) for root, part in zip(same, y, strict=True)])
