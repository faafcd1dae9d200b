"""Second moments of the inputs of one weight, and how they add up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import frexp, inf, prod
from typing import Any

import torch
from torch import Tensor

from ..layers import Slot
from ..layers.inputs import Inputs, Lookups
from ..precision import full_precision

# Numbers in one piece of patches: small enough for the cache of a CPU to help.
_PIECE = {"cpu": 1 << 22}
_PIECE_ELSEWHERE = 1 << 26


def piece_size(device: torch.device) -> int:
    """How many numbers of patches to form at a time."""
    return _PIECE.get(device.type, _PIECE_ELSEWHERE)


def draw(
    inputs: Inputs, mask: Tensor | None, most: int | None, generator: torch.Generator
) -> tuple[Tensor | None, int, int]:
    """Draw at most `most` of the positions that count, where `mask` leaves some out.

    Gives those drawn, None for all there are; how many count; and how many were drawn.
    """
    index = inputs.kept(mask)
    seen = len(inputs) if index is None else len(index)
    used = seen if most is None else min(seen, most)
    if used == seen:
        return index, seen, seen
    drawn = torch.randperm(seen, generator=generator)[:used].sort().values.to(inputs.device)
    return (drawn if index is None else index[drawn.to(index.device)]), seen, used


def weighted_columns(
    inputs: Inputs, index: Tensor | None, size: int, weights: Tensor | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield `inputs.columns(index, size)`, each with how much its positions count; None for alike.

    weights : (batch,), of the samples
    """
    places = None if weights is None else inputs.spread(weights)
    if places is not None and index is not None:
        places = places[index.to(places.device)]
    start = 0
    for columns in inputs.columns(index, size):
        stop = start + columns.shape[-1]
        yield columns, None if places is None else places[start:stop].to(columns.device)
        start = stop


# Into how many bands of rows a symmetric product is cut.
_BANDS = 4
# Below, cutting costs more than it saves.
_LEAST = 64


def add_squares(total: Tensor, x: Tensor, share: float) -> None:
    """Add x x^T, of x (groups, n, positions), to total (groups, n, n), but for what mirrors it.

    Of blocks beside the diagonal only those above it, 5/8 of the work; `mirror` does the rest.
    """
    for band in _bands(total):
        part = x[:, band] @ x[:, band.start :].mT
        total[:, band, band.start :].add_(part.to(total.device), alpha=share)


def mirror(total: Tensor) -> Tensor:
    """Complete sums of `add_squares`, in place."""
    for band in _bands(total):
        total[:, band.stop :, band] = total[:, band, band.stop :].mT
    return total


def _bands(total: Tensor) -> Iterator[slice]:
    n = total.shape[-1]
    # What has many processors wants large products.
    step = -(-n // _BANDS) if n >= _LEAST and total.device.type == "cpu" else max(n, 1)
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


@dataclass(frozen=True)
class Moments:
    """Moments of what a weight (groups, out, in, *kernel) is applied to, y = W x.

    covariance : (groups, n, n), E[x x^T] - E[x] E[x]^T, what counts where a bias takes the mean,
        with n = in * kernel in the order in which the weight flattens; float64
    mean : (groups, n), E[x]; float64
    count : (groups,), how many positions were seen
    used : (groups,), how many of them were drawn to estimate the moments

    A group that nothing was sent to, such as an idle expert, has zeros.
    """

    covariance: Tensor
    mean: Tensor
    count: Tensor
    used: Tensor

    @property
    def gram(self) -> Tensor:
        """(groups, n, n), E[x x^T]."""
        return torch.baddbmm(self.covariance, self.mean[:, :, None], self.mean[:, None])


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


def typical(x: Tensor) -> Tensor:
    """Mean (groups, n) of columns x (groups, n, positions), in their dtype; exact of equal ones.

    Taken off before squares are formed, it leaves nothing of inputs that are all alike, where
    the difference of a second moment and the square of a mean would leave rounding.
    """
    return x.mean(-1, dtype=torch.float64).to(x.dtype)


def unit_of(x: Tensor) -> float:
    """Power of two by which to divide before squares, or products, leave the range of float32."""
    largest = float(x.abs().amax()) if x.numel() else 0.0
    if 1e-15 < largest < 1e15 or not 0 < largest < inf:
        return 1.0
    return 2.0 ** frexp(largest)[1]


class MomentSum:
    """Sums over positions of x x^T and of x, for columns x of one weight.

    groups, n : how many independent columns of which length there are at each position
    max_positions : of one call, how many are used at most; the rest is represented by
        them, each position with the same chance
    diagonal : whether to keep the diagonal of x x^T only
    about_mean : whether x are taken less something like their mean, `shift`, in all sums

    Sums over a piece of positions are formed in float32 (25 times faster than float64
    on a CPU, and exact to 1e-7 of the sum) and added up in float64, so that the error does
    not grow with the amount of data.
    """

    def __init__(
        self,
        groups: int,
        n: int,
        device: torch.device,
        max_positions: int | None,
        generator: torch.Generator,
        diagonal: bool = False,
        about_mean: bool = False,
    ):
        like: dict[str, Any] = {"device": device, "dtype": torch.float64}
        self._squares = torch.zeros(groups, n, *(() if diagonal else (n,)), **like)
        self.total = torch.zeros(groups, n, **like)
        self.count = torch.zeros(groups, dtype=torch.int64, device=device)
        self.used = torch.zeros_like(self.count)
        self.weight = torch.zeros(groups, dtype=torch.float64, device=device)
        self.shift = torch.zeros_like(self.total)
        self._max_positions = max_positions
        self._generator = generator
        self._diagonal, self._about_mean = diagonal, about_mean

    def add(self, inputs: Inputs, mask: Tensor | None, weights: Tensor | None = None) -> None:
        """Add one call; `mask` (batch, sequence) is False at padding, `weights` are (batch,)."""
        index, seen, used = draw(inputs, mask, self._max_positions, self._generator)
        if not seen:
            return
        of = slice(None) if inputs.group is None else slice(inputs.group, inputs.group + 1)
        first = self._about_mean and not self.count[of].any()
        self.count[of] += seen
        self.used[of] += used
        device = self._squares.device
        piece = piece_size(device)
        # Autocast of the user's forward would form the products in half precision.
        with torch.autocast(device.type, enabled=False), full_precision():
            for columns, w in weighted_columns(inputs, index, piece, weights):
                x = columns.to(torch.promote_types(columns.dtype, torch.float32))
                if first:
                    self.shift[of], first = typical(x), False
                if self._about_mean:
                    x = x - self.shift[of, :, None].to(x)
                unit = unit_of(x)
                x = x if unit == 1 else x / unit
                times_w = x if w is None else x * w
                if self._diagonal:
                    squares = (x * times_w).sum(-1)
                    self._squares[of].add_(squares.to(device), alpha=unit**2 * seen / used)
                else:
                    root = x if w is None else x * w.sqrt()
                    add_squares(self._squares[of], root, unit**2 * seen / used)
                self.total[of].add_(times_w.sum(-1).to(device), alpha=unit * seen / used)
                self.weight[of] += (x.shape[-1] if w is None else float(w.sum())) * seen / used

    @property
    def gram(self) -> Tensor:
        """The sum of x x^T itself, not a copy, or of its diagonal."""
        return self._squares if self._diagonal else mirror(self._squares)


class StatisticsSum:
    """Sums over calls from which the `Statistics` of one weight are made.

    slot : the weight; sums are kept on its device
    max_positions : of one call, how many are used at most
    """

    def __init__(
        self,
        slot: Slot,
        max_positions: int | None,
        generator: torch.Generator,
    ):
        groups, self._rows, *rest = slot.shape
        self._device = slot.parameters[0].device
        self._settings = (groups, prod(rest), self._device, max_positions, generator)
        self._moments: MomentSum | None = None
        self._lookups: Tensor | None = None

    @property
    def reached(self) -> bool:
        """Whether any batch has reached the weight."""
        seen = self._moments is not None and bool(self._moments.count.any())
        return seen or self._lookups is not None

    def add(
        self, inputs: Inputs | Lookups, mask: Tensor | None, weights: Tensor | None = None
    ) -> None:
        """Add one call; `mask` (batch, sequence) is False at padding.

        weights : (batch,), how much each sample counts; look-ups count alike
        """
        if isinstance(inputs, Lookups):
            found = inputs.kept(mask).to(self._device)
            if self._lookups is None:
                with torch.inference_mode(False):
                    self._lookups = torch.zeros(self._rows, dtype=torch.int64, device=self._device)
            self._lookups += torch.bincount(found, minlength=self._rows)
        else:
            # Made when first needed: an embedding needs none. The forward around this may be for
            # inference only, whose tensors cannot be changed afterwards.
            if self._moments is None:
                with torch.inference_mode(False):
                    self._moments = MomentSum(*self._settings, about_mean=True)
            self._moments.add(inputs, mask, weights)

    def result(self) -> Statistics:
        """Divide by the numbers of positions, or by their weights; the sums are used up."""
        sums, self._moments = self._moments, None
        if sums is None or not sums.count.any():
            return Statistics(None, self._lookups)
        divisor = torch.where(sums.weight > 0, sums.weight, 1.0)
        beside = sums.total / divisor[:, None]
        # In place: a second copy of the largest of all tensors would double the memory.
        covariance = sums.gram.div_(divisor[:, None, None])
        covariance.baddbmm_(beside[:, :, None], beside[:, None], alpha=-1)
        moments = Moments(covariance, sums.shift + beside, sums.count, sums.used)
        return Statistics(moments, self._lookups)
