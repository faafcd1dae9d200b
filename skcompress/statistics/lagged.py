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

    @property
    def n_positions(self) -> int:
        """Of each signal."""
        return self.x.shape[-1] - (self.taps - 1) * self.step

    def squares(self, shift: Tensor, weights: Tensor | None) -> Tensor:
        """Sum of x x^T over all positions, (groups, n, n) in float64.

        shift : (groups, in), what is taken off; weights : (batch,), of the samples; None for 1
        """
        x = self.x.to(torch.promote_types(self.x.dtype, torch.float32))
        x = x - shift.to(x)[:, :, None, None]
        if weights is not None:
            x = x * weights.to(x).sqrt()[:, None, None, None, None]
        x = x.movedim(0, 2).flatten(2, 3)  # groups, in, signals, length
        return torch.stack([self._of_group(part) for part in x])

    def _of_group(self, x: Tensor) -> Tensor:
        channels, taps, step = len(x), self.taps, self.step
        n_positions, n_ends = self.n_positions, (taps - 1) * step
        blocks = x.new_zeros(taps, taps, channels, channels, dtype=torch.float64)
        for part in x.split(max(1, _PIECE // n_positions), dim=1):
            first = part[:, :, :n_positions].flatten(1)
            for lag in range(taps):
                later = part[:, :, lag * step : lag * step + n_positions].flatten(1)
                blocks[0, lag] += first @ later.mT
        come, go = (
            end.unflatten(2, (taps - 1, step)).permute(2, 0, 1, 3).flatten(2).flatten(0, 1)
            for end in (x[:, :, n_positions:], x[:, :, :n_ends])
        )
        change = (
            (come @ come.mT - go @ go.mT).unflatten(1, (taps - 1, -1)).unflatten(0, (taps - 1, -1))
        )
        for a in range(1, taps):
            after = change[a - 1, :, a - 1 :].transpose(0, 1)
            blocks[a, a:] = blocks[a - 1, a - 1 : -1] + after
        for a in range(taps - 1):
            blocks[a + 1 :, a] = blocks[a, a + 1 :].mT
        return blocks.permute(2, 0, 3, 1).reshape(channels * taps, -1)
