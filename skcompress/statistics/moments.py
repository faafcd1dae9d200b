"""Second moments of the inputs of one weight, and how they add up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import frexp, inf, prod
from typing import Any

import torch
from torch import Tensor

from ..layers import Slot
from ..precision import full_precision
from ..protocols import Dense, Inputs, Lookups, Patches, SecondMoment, Spanned
from .lagged import LagSum, Signals

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

    covariances : of each group, E[x x^T] - E[x] E[x]^T, what counts where a bias takes the mean,
        of n = in * kernel inputs in the order in which the weight flattens
    mean : (groups, n), E[x]; float64
    count : (groups,), how many positions were seen
    used : (groups,), how many of them were drawn to estimate the moments

    A group that nothing was sent to, such as an idle expert, has zeros.
    """

    covariances: tuple[SecondMoment, ...]
    mean: Tensor
    count: Tensor
    used: Tensor

    def of_inputs(self, centred: bool) -> list[SecondMoment]:
        """Second moment of each group, about its mean if `centred`."""
        if centred:
            return list(self.covariances)
        pairs = zip(self.covariances, self.mean, strict=True)
        return [covariance.plus_square(mean) for covariance, mean in pairs]

    @property
    def covariance(self) -> Tensor:
        """All covariances as matrices, (groups, n, n)."""
        return torch.stack([covariance.dense for covariance in self.covariances])

    @property
    def gram(self) -> Tensor:
        """(groups, n, n), E[x x^T]."""
        return torch.stack([moment.dense for moment in self.of_inputs(centred=False)])


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


def typical(inputs: Inputs, x: Tensor) -> Tensor:
    """Mean (groups, n) of columns x (groups, n, positions), in their dtype; exact of equal ones.

    inputs : of which they are columns; of windows, all places of a channel have one mean

    Taken off before squares are formed, it leaves nothing of inputs that are all alike, where
    the difference of a second moment and the square of a mean would leave rounding.
    """
    mean = x.mean(-1, dtype=torch.float64)
    if isinstance(inputs, Patches):
        of_channels = mean.unflatten(1, (inputs.windows.shape[2], -1))
        mean = of_channels.mean(2, keepdim=True).expand_as(of_channels).flatten(1)
    return mean.to(x.dtype)


def in_units(x: Tensor) -> tuple[Tensor, float]:
    """Divide by a power of two where squares, or products, leave the range of float32.

    Gives the result and what it was divided by; mostly x itself and 1.
    """
    least, most = (float(end) for end in x.aminmax()) if x.numel() else (0.0, 0.0)
    largest = max(-least, most)
    if 1e-15 < largest < 1e15 or not 0 < largest < inf:
        return x, 1.0
    unit = 2.0 ** frexp(largest)[1]
    return x / unit, unit


class SquareSum:
    """Sum over positions of x x^T, for columns x (groups, n, positions) about something near 0.

    While there are fewer columns than n, they themselves are what is kept.
    """

    def __init__(self, groups: int, n: int, device: torch.device):
        self._shape, self._device = (groups, n, n), device
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._total: Tensor | None = None
        # By the step of their kernels: layers that share a weight may be dilated differently.
        self._lags: dict[int, LagSum] = {}

    def add(self, of: slice, x: Tensor, w: Tensor | None, share: float) -> None:
        """Add columns x of some groups, each `share` times and by its weight w (positions,)."""
        if self.keeps(x.shape[-1]) and len(x) == self._shape[0]:
            counts = torch.full_like(x[0, 0], share) if w is None else share * w
            self._kept.append((x.to(self._device), counts.to(self._device)))
            return
        x, unit = in_units(x)
        add_squares(self._whole()[of], x if w is None else x * w.sqrt(), unit**2 * share)

    def keeps(self, n_more: int) -> bool:
        """Whether so many more columns would still be kept as they are."""
        n_kept = sum(len(counts) for _, counts in self._kept)
        whole = self._total is not None or self._lags
        return not whole and n_kept + n_more < self._shape[1]

    def add_signals(
        self, signals: Signals, shift: Tensor, weights: Tensor | None, share: float
    ) -> None:
        """Add all columns of windows along one axis.

        shift : (groups, n), what is taken off; weights : (batch,), of the samples
        """
        channels = shift.unflatten(1, (-1, signals.taps))[:, :, 0]
        x = signals.less(channels, weights)
        if signals.step not in self._lags:
            shape = (*x.shape[:2], signals.taps)
            with torch.inference_mode(False):
                self._lags[signals.step] = LagSum(shape, signals.step, self._device)
        self._lags[signals.step].add(x, share)

    def _whole(self) -> Tensor:
        """Give the sum as a matrix, from now on."""
        if self._total is None:
            like: dict[str, Any] = {"dtype": torch.float64, "device": self._device}
            with torch.inference_mode(False):
                total = self._total = torch.zeros(self._shape, **like)
            for columns, counts in self._kept:
                x, unit = in_units(columns)
                add_squares(total, x * counts.sqrt(), unit**2)
            self._kept = []
        return self._total

    def covariances(self, weight: Tensor, mean: Tensor) -> tuple[SecondMoment, ...]:
        """Divide by the weights (groups,) of all columns, about their means (groups, n).

        The sum is used up.
        """
        if self._total is None and not self._lags:
            return self._spanned(weight, mean)
        # In place: a second copy of the largest of all tensors would double the memory.
        found = self._matrix().div_(weight[:, None, None])
        found.baddbmm_(mean[:, :, None], mean[:, None], alpha=-1)
        return tuple(map(Dense, found))

    def _matrix(self) -> Tensor:
        """Give the sum, (groups, n, n); it is used up."""
        sums = list(self._lags.values())
        found = sums.pop().matrix() if sums else mirror(self._whole())
        for lags in sums:
            found += lags.matrix()
        if self._lags and (self._kept or self._total is not None):  # of calls with few positions
            found += mirror(self._whole())
        return found

    def _spanned(self, weight: Tensor, mean: Tensor) -> tuple[SecondMoment, ...]:
        columns = [x.to(torch.float64) for x, _ in self._kept]
        x = torch.cat([mean[:, :, None][:, :, :0], *columns], dim=2) - mean[:, :, None]
        counts = torch.cat([mean[0, :0], *(c.to(torch.float64) for _, c in self._kept)])
        factors = x * (counts / weight[:, None]).sqrt()[:, None]
        return tuple(Spanned(factor) for factor in factors)


class MomentSum:
    """Sum over positions of g g^T, for columns g of what comes back to the outputs of one weight.

    groups, n : how many independent columns of which length there are at each position
    max_positions : of one call, how many are used at most; the rest is represented by
        them, each position with the same chance
    diagonal : whether to keep the diagonal of g g^T only

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
    ):
        like: dict[str, Any] = {"device": device, "dtype": torch.float64}
        self._squares = torch.zeros(groups, n, *(() if diagonal else (n,)), **like)
        self.count = torch.zeros(groups, dtype=torch.int64, device=device)
        self._max_positions = max_positions
        self._generator = generator
        self._diagonal = diagonal

    def add(self, inputs: Inputs, mask: Tensor | None) -> None:
        """Add one call; `mask` (batch, sequence) is False at padding."""
        index, seen, used = draw(inputs, mask, self._max_positions, self._generator)
        if not seen:
            return
        of = inputs.groups
        self.count[of] += seen
        device = self._squares.device
        # Autocast of the user's forward would form the products in half precision.
        with torch.autocast(device.type, enabled=False), full_precision():
            for columns in inputs.columns(index, piece_size(device)):
                x = columns.to(torch.promote_types(columns.dtype, torch.float32))
                x, unit = in_units(x)
                share = unit**2 * seen / used
                if self._diagonal:
                    self._squares[of].add_(x.square().sum(-1).to(device), alpha=share)
                else:
                    add_squares(self._squares[of], x, share)

    @property
    def gram(self) -> Tensor:
        """The sum of g g^T itself, not a copy, or of its diagonal."""
        return self._squares if self._diagonal else mirror(self._squares)


class InputSum:
    """Sums over positions of x x^T and of x, for inputs x of one weight; see `MomentSum`.

    All are of x less something like its mean; see `typical`.
    """

    def __init__(
        self,
        groups: int,
        n: int,
        device: torch.device,
        max_positions: int | None,
        generator: torch.Generator,
    ):
        like: dict[str, Any] = {"device": device, "dtype": torch.float64}
        self._squares = SquareSum(groups, n, device)
        self._shift, self._total = (torch.zeros(groups, n, **like) for _ in range(2))
        self.count, self._used = (
            torch.zeros(groups, dtype=torch.int64, device=device) for _ in range(2)
        )
        self._weight = torch.zeros(groups, **like)
        self._max_positions = max_positions
        self._generator = generator

    def add(self, inputs: Inputs, mask: Tensor | None, weights: Tensor | None = None) -> None:
        """Add one call; `mask` (batch, sequence) is False at padding, `weights` are (batch,)."""
        index, seen, used = draw(inputs, mask, self._max_positions, self._generator)
        if not seen:
            return
        share = seen / used  # what each of those drawn stands for
        of = inputs.groups
        first = not self.count[of].any()
        self.count[of] += seen
        self._used[of] += used
        device = self._total.device
        signals = None
        if index is None and not self._squares.keeps(used):
            signals = Signals.of(inputs)
        # Autocast of the user's forward would form the products in half precision.
        with torch.autocast(device.type, enabled=False), full_precision():
            for columns, w in weighted_columns(inputs, index, piece_size(device), weights):
                x = columns.to(torch.promote_types(columns.dtype, torch.float32))
                if first:
                    self._shift[of], first = typical(inputs, x), False
                x = x - self._shift[of, :, None].to(x)
                if signals is None:
                    self._squares.add(of, x, w, share)
                total = (x if w is None else x * w).sum(-1)
                self._total[of].add_(total.to(device), alpha=share)
                self._weight[of] += (x.shape[-1] if w is None else float(w.sum())) * share
            if signals is not None:
                self._squares.add_signals(signals, self._shift, weights, share)

    def result(self) -> Moments:
        """Divide by the numbers of positions, or by their weights; the sums are used up."""
        weight = torch.where(self._weight > 0, self._weight, 1.0)
        beside = self._total / weight[:, None]
        covariances = self._squares.covariances(weight, beside)
        return Moments(covariances, self._shift + beside, self.count, self._used)


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
        self._moments: InputSum | None = None
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
                    self._moments = InputSum(*self._settings)
            self._moments.add(inputs, mask, weights)

    def result(self) -> Statistics:
        """Divide by the numbers of positions, or by their weights; the sums are used up."""
        sums, self._moments = self._moments, None
        if sums is None or not sums.count.any():
            return Statistics(None, self._lookups)
        return Statistics(sums.result(), self._lookups)
