"""Second moments of convolutions along one axis: by lags instead of by windows.

Of a kernel of K taps the inputs are windows x[p], x[p + d], ..., x[p + (K - 1) d] of one signal, at
positions p = 0 ... P - 1. What two taps a and b have in common depends on their lag but for the
ends: from (a, b) to (a + 1, b + 1) the products of the first d positions go and those of the
next d come. So K products of signals do, and a correction of the ends, instead of K^2: exact, in
O(channels^2 K P) rather than O(channels^2 K^2 P).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..protocols import Inputs, Patches

# Taps from which on it pays.
_TAPS = 8
# Positions that are summed up in float32.
_PIECE = 4096


def by_lags(kernel: Sequence[int]) -> bool:
    """Whether moments of windows of this shape are summed up by lags."""
    long = [size for size in kernel if size > 1]
    return len(long) == 1 and long[0] >= _TAPS


@dataclass(frozen=True)
class Signals:
    """What the windows of one call are cut from.

    x : (batch, groups, in, others, length), others: positions along other axes
    taps, step : of the kernel, in numbers of the signal
    """

    x: Tensor
    taps: int
    step: int

    @classmethod
    def of(cls, inputs: Inputs) -> Signals | None:
        """Give the signals of windows along one axis; None where that is not what they are."""
        if not isinstance(inputs, Patches) or inputs.flip:
            return None
        windows, n = inputs.windows, inputs.n_axes
        kernel = list(windows.shape[3 + n :])
        if not by_lags(kernel):
            return None
        taps = max(kernel)
        axis = 3 + kernel.index(taps)
        stride, reach = windows.stride(axis), windows.stride(axis + n)
        if windows.shape[axis] < 2 or not stride or reach % stride:
            return None
        step, sizes = reach // stride, list(windows.shape[: 3 + n])
        sizes[axis] += (taps - 1) * step
        x = windows.as_strided(sizes, windows.stride()[: 3 + n], windows.storage_offset())
        return cls(x.movedim(axis, -1).flatten(3, -2) if n > 1 else x[:, :, :, None], taps, step)

    def less(self, shift: Tensor, weights: Tensor | None) -> Tensor:
        """Give the signals (groups, in, signals, length) in float32 at least, less `shift`.

        shift : (groups, in); weights : (batch,), by whose roots samples are multiplied; None for 1
        """
        x = self.x.to(torch.promote_types(self.x.dtype, torch.float32))
        x = x - shift.to(x)[:, :, None, None]
        if weights is not None:
            x = x * weights.to(x).sqrt()[:, None, None, None, None]
        return x.movedim(0, 2).flatten(2, 3)


class LagSum:
    """Sum of w w^T over the windows w of signals, over calls; a matrix only at the end.

    That of one call is made of two sums that are small, of lags and of ends, and so is that of
    many: what is as large as the result is done once.

    shape : groups, in, taps; step : from tap to tap, in numbers of the signal
    """

    def __init__(self, shape: tuple[int, int, int], step: int, device: torch.device):
        groups, channels, taps = shape
        self._taps, self._step = taps, step
        like: dict[str, Any] = {"dtype": torch.float64, "device": device}
        self._lags = torch.zeros(groups, taps, channels, channels, **like)
        # Columns (groups, (taps - 1) in, any): ends that come and that go, of sums to be formed.
        self._ends: list[tuple[Tensor, Tensor]] = []
        self._change: Tensor | None = None

    def add(self, x: Tensor, share: float) -> None:
        """Add the windows of signals x (groups, in, signals, length), each `share` times."""
        x = x.to(self._lags.device)
        taps, step = self._taps, self._step
        n_ends = (taps - 1) * step
        n_positions = x.shape[-1] - n_ends
        for part in x.split(max(1, _PIECE // n_positions), dim=2):
            first = part[..., :n_positions].flatten(2)
            for lag in range(taps):
                later = part[..., lag * step : lag * step + n_positions].flatten(2)
                self._lags[:, lag].add_(first @ later.mT, alpha=share)
        come, go = (
            end.unflatten(3, (taps - 1, step)).permute(0, 3, 1, 2, 4).flatten(3).flatten(1, 2)
            for end in (x[..., n_positions:] * share**0.5, x[..., :n_ends] * share**0.5)
        )
        self._ends.append((come, go))
        if sum(end.shape[2] for end, _ in self._ends) > come.shape[1]:
            self._fold()

    def _fold(self) -> None:
        """Form the products of ends, which are more than they would be as a matrix."""
        come, go = (torch.cat(ends, dim=2) for ends in zip(*self._ends, strict=True))
        change = (come @ come.mT - go @ go.mT).double()
        self._change = change if self._change is None else self._change + change
        self._ends = []

    def _changed(self, a: int) -> Tensor:
        """Give what is added to blocks (a - 1, b - 1) to have (a, b); (groups, in, any b's in)."""
        channels = self._lags.shape[2]
        rows, columns = slice((a - 1) * channels, a * channels), slice((a - 1) * channels, None)
        found = self._lags.new_zeros(()) if self._change is None else self._change[:, rows, columns]
        for ends in self._ends:
            for end, sign in zip(ends, (1, -1), strict=True):
                found = found + sign * (end[:, rows].double() @ end[:, columns].double().mT)
        return found

    def matrix(self) -> Tensor:
        """Give the sum, (groups, in * taps, in * taps) in float64."""
        groups, taps, channels, _ = self._lags.shape
        result = self._lags.new_empty(groups, channels, taps, channels, taps)
        blocks = result.permute(2, 4, 0, 1, 3)  # tap, tap, groups, in, in
        blocks[0] = self._lags.transpose(0, 1)
        for a in range(1, taps):
            change = self._changed(a).unflatten(2, (taps - a, channels)).permute(2, 0, 1, 3)
            torch.add(blocks[a - 1, a - 1 : -1], change, out=blocks[a, a:])
        for a in range(taps - 1):
            blocks[a + 1 :, a] = blocks[a, a + 1 :].mT
        return result.reshape(groups, channels * taps, -1)
