"""Second moments of the inputs of one weight, and how they add up."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..factorized import Slot
from ..factorized.inputs import Inputs, Lookups
from .precision import full_precision

# Numbers in one piece of patches: small enough for the cache of a CPU to help.
_PIECE = {"cpu": 1 << 22}
_PIECE_ELSEWHERE = 1 << 26


def piece_size(device: torch.device) -> int:
    """How many numbers of patches to form at a time."""
    return _PIECE.get(device.type, _PIECE_ELSEWHERE)


@dataclass(frozen=True)
class Moments:
    """Moments of what a weight (groups, out, in, *kernel) is applied to, y = W x.

    gram : (groups, n, n), E[x x^T], with n = in * kernel in the order in which the
        weight flattens; float64
    mean : (groups, n), E[x]; float64
    count : (groups,), how many positions were seen
    used : (groups,), how many of them were drawn to estimate the moments

    A group that nothing was sent to, such as an idle expert, has zeros.
    """

    gram: Tensor
    mean: Tensor
    count: Tensor
    used: Tensor

    @property
    def covariance(self) -> Tensor:
        """(groups, n, n), E[x x^T] - E[x] E[x]^T: what counts where a bias takes the mean."""
        return self.gram - self.mean[:, :, None] * self.mean[:, None]


@dataclass(frozen=True)
class Statistics:
    """What a weight met on the calibration data.

    moments : where it is multiplied with inputs; None where it never was
    lookups : (num_embeddings,), how often each row was looked up, where it is an
        embedding; None where it never was

    An embedding that is tied to an output head has both.
    """

    moments: Moments | None = None
    lookups: Tensor | None = None


class StatisticsSum:
    """Sums over calls from which the `Statistics` of one weight are made.

    slot : the weight; sums are kept on its device
    max_positions : of one call, how many are used at most; the rest is represented by
        them, each position with the same chance

    Sums over a piece of positions are formed in float32 (25 times faster than float64
    on a CPU, and exact to 1e-7 of the sum) and added up in float64, so that the error does
    not grow with the amount of data.
    """

    def __init__(
        self,
        slot: Slot,
        max_positions: int | None,
        generator: torch.Generator,
    ):
        self._groups, self._rows, *rest = slot.shape
        self._n = prod(rest)
        self._device = slot.parameters[0].device
        self._max_positions = max_positions
        self._generator = generator
        self._moments: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        self._lookups: Tensor | None = None

    @property
    def reached(self) -> bool:
        """Whether any batch has reached the weight."""
        return self._moments is not None or self._lookups is not None

    def add(self, inputs: Inputs | Lookups, mask: Tensor | None) -> None:
        """Add one call; `mask` (batch, sequence) is False at padding."""
        if isinstance(inputs, Lookups):
            found = inputs.kept(mask).to(self._device)
            if self._lookups is None:
                self._lookups = torch.zeros(self._rows, dtype=torch.int64, device=self._device)
            self._lookups += torch.bincount(found, minlength=self._rows)
        else:
            self._add_moments(inputs, inputs.kept(mask))

    def _add_moments(self, inputs: Inputs, index: Tensor | None) -> None:
        seen = len(inputs) if index is None else len(index)
        if not seen:
            return
        index, used = self._draw(index, seen)
        gram, total, count, n_used = (part[self._of(inputs)] for part in self._sums())
        count += seen
        n_used += used
        piece = piece_size(self._device)
        # Autocast of the user's forward would form the products in half precision.
        with torch.autocast(self._device.type, enabled=False), full_precision():
            for columns in inputs.columns(index, piece):
                x = columns.to(torch.promote_types(columns.dtype, torch.float32))
                gram.add_((x @ x.mT).to(gram.device), alpha=seen / used)
                total.add_(x.sum(-1).to(gram.device), alpha=seen / used)

    def _draw(self, index: Tensor | None, seen: int) -> tuple[Tensor | None, int]:
        used = seen if self._max_positions is None else min(seen, self._max_positions)
        if used == seen:
            return index, seen
        drawn = torch.randperm(seen, generator=self._generator)[:used].sort().values
        return (drawn if index is None else index[drawn]), used

    def _sums(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sums of x x^T, of x, and the numbers of positions; made when first needed."""
        if self._moments is None:
            like: dict[str, Any] = {"device": self._device, "dtype": torch.float64}
            self._moments = (
                torch.zeros(self._groups, self._n, self._n, **like),
                torch.zeros(self._groups, self._n, **like),
                torch.zeros(self._groups, dtype=torch.int64, device=self._device),
                torch.zeros(self._groups, dtype=torch.int64, device=self._device),
            )
        return self._moments

    def _of(self, inputs: Inputs) -> slice:
        return slice(None) if inputs.group is None else slice(inputs.group, inputs.group + 1)

    def result(self) -> Statistics:
        """Divide by the numbers of positions; the sums are used up."""
        if self._moments is None:
            return Statistics(None, self._lookups)
        gram, total, count, used = self._moments
        self._moments = None
        divisor = count.clamp(min=1).double()
        # In place: a second copy of the largest of all tensors would double the memory.
        gram /= divisor[:, None, None]
        return Statistics(Moments(gram, total / divisor[:, None], count, used), self._lookups)
