"""What the weights of a layer are applied to in one call of it: y_p = W x_p at positions p."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor


class Inputs(ABC):
    """Inputs of one weight (groups, out, in, *kernel) in one call, one column per position.

    lead : shape of the positions, such as (batch, sequence) or (batch, height, width)
    group : the one group that they belong to; None where each group has its own input at
        every position
    """

    lead: tuple[int, ...]
    group: int | None = None

    def __len__(self) -> int:
        return prod(self.lead)

    @property
    def groups(self) -> slice:
        """The groups that they belong to: `group`, or all."""
        return slice(None) if self.group is None else slice(self.group, self.group + 1)

    def kept(self, mask: Tensor | None) -> Tensor | None:
        """Give the positions that count, as indices below `len(self)`; None for all.

        mask : of shape (batch, sequence), False at padding. It says something about layers
            whose positions have its shape, and is ignored by the others.
        """
        spread = None if mask is None else self._spread(mask)
        return None if spread is None else spread.nonzero()[:, 0]

    def _spread(self, mask: Tensor) -> Tensor | None:
        """Give `mask` for each position, flat; None where its shape is another."""
        return mask.reshape(-1) if self.lead == mask.shape else None

    def spread(self, weights: Tensor) -> Tensor | None:
        """Give for each position the weight (batch,) of the sample that it comes from.

        None where positions cannot be told apart by samples.
        """
        n, batch = prod(self.lead), len(weights)
        if len(self.lead) > 1 and self.lead[0] != batch == self.lead[1]:  # (sequence, batch)
            return weights.repeat_interleave(prod(self.lead[2:])).repeat(self.lead[0])
        return weights.repeat_interleave(n // batch) if n % batch == 0 else None

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where they lie."""

    @abstractmethod
    def columns(self, index: Tensor | None, size: int) -> Iterator[Tensor]:
        """Yield the inputs at positions `index`, or at all, as (groups, n, positions).

        n is in * kernel, in the order in which the weight flattens; one yielded tensor
        has at most `size` numbers, or one position.
        """


@dataclass(frozen=True)
class Rows(Inputs):
    """Inputs that lie in a matrix already.

    x : (positions, n)
    keep : (positions,), False where the layer itself knows of padding
    place : (positions,), where among prod(lead) each row comes from; None where each
        place gave one row
    """

    x: Tensor
    lead: tuple[int, ...]
    keep: Tensor | None = None
    place: Tensor | None = None
    group: int | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def device(self) -> torch.device:
        return self.x.device

    def kept(self, mask: Tensor | None) -> Tensor | None:
        spread = None if mask is None else self._spread(mask)
        if spread is not None and self.place is not None:
            spread = spread[self.place]
        if self.keep is not None:
            spread = self.keep if spread is None else self.keep & spread
        return None if spread is None else spread.nonzero()[:, 0]

    def _spread(self, mask: Tensor) -> Tensor | None:
        if self.lead == (mask.numel(),):  # expert blocks flatten batch and sequence
            return mask.reshape(-1)
        if self.lead[:2] != mask.shape:
            return None
        return mask.reshape(-1).repeat_interleave(prod(self.lead[2:]))

    def spread(self, weights: Tensor) -> Tensor | None:
        every = super().spread(weights)
        if every is None or self.place is None:
            return every if every is None or len(every) == len(self.x) else None
        return every[self.place.to(every.device)]

    def columns(self, index: Tensor | None, size: int) -> Iterator[Tensor]:
        n_positions = max(1, size // max(1, self.x.shape[1]))
        if index is None:
            yield from (x.mT[None] for x in self.x.split(n_positions))
        else:
            yield from (self.x[part].mT[None] for part in index.split(n_positions))


def rows(x: Tensor, keep: Tensor | None = None) -> Rows:
    """Inputs (*lead, n) of a linear map; `keep`, of shape lead, is False at padding.

    Nested tensors, as `nn.TransformerEncoder` makes them, hold no padding.
    """
    if x.is_nested:
        x = torch.cat([sequence.reshape(-1, sequence.shape[-1]) for sequence in x.unbind()])
    flat = None if keep is None else keep.reshape(-1)
    return Rows(x.reshape(-1, x.shape[-1]), tuple(x.shape[:-1]), flat)


@dataclass(frozen=True)
class Patches(Inputs):
    """Inputs of a convolution, cut out of its padded input only when asked for.

    windows : view of shape (batch, groups, in, *out, *kernel)
    flip : whether the kernel axes run backwards, as in transposed convolutions
    """

    windows: Tensor
    flip: bool = False

    @property
    def device(self) -> torch.device:
        return self.windows.device

    @property
    def n_axes(self) -> int:
        """Number of kernel axes."""
        return (self.windows.dim() - 3) // 2

    @property
    def lead(self) -> tuple[int, ...]:  # type: ignore[override]
        return (len(self.windows), *self.windows.shape[3 : 3 + self.n_axes])

    @property
    def _column(self) -> int:
        shape = self.windows.shape
        return prod(shape[1:3]) * prod(shape[3 + self.n_axes :])

    def columns(self, index: Tensor | None, size: int) -> Iterator[Tensor]:
        n_positions = max(1, size // max(1, self._column))
        if index is None:
            yield from map(self._whole, self._blocks(n_positions))
        else:
            yield from map(self._picked, index.split(n_positions))

    def _blocks(self, n_positions: int) -> Iterator[Tensor]:
        """Cut the windows along the batch, and along output rows where an image is too large."""
        n_image = prod(self.lead[1:])
        if n_image <= n_positions:
            yield from self.windows.split(n_positions // n_image)
            return
        n_rows = max(1, n_positions // (n_image // self.lead[1]))
        for image in self.windows.split(1):
            yield from image.split(n_rows, dim=3)

    def _whole(self, windows: Tensor) -> Tensor:
        n = self.n_axes
        kernel = range(3 + n, 3 + 2 * n)
        # Positions last: runs of the input stay runs in the copy.
        x = windows.permute(1, 2, *kernel, 0, *range(3, 3 + n))
        if self.flip:
            x = x.flip(tuple(range(2, 2 + n)))
        return x.flatten(2 + n).flatten(1, 1 + n)

    def _picked(self, index: Tensor) -> Tensor:
        n = self.n_axes
        shape, strides = self.windows.shape, self.windows.stride()
        lead, step = self.lead, (strides[0], *strides[3 : 3 + n])
        # A window for every number that one may begin with, the wanted ones among them: of rows of
        # one axis torch copies several times as fast as of positions of several.
        span = 1 + sum((size - 1) * stride for size, stride in zip(lead, step, strict=True))
        windows = self.windows.as_strided(
            (span, *shape[1:3], *shape[3 + n :]),
            (1, *strides[1:3], *strides[3 + n :]),
            self.windows.storage_offset(),
        )
        begin = torch.zeros_like(index)
        for place, stride in zip(torch.unravel_index(index, lead), step, strict=True):
            begin += place * stride
        x = windows.index_select(0, begin)  # positions, groups, in, *kernel
        if self.flip:
            x = x.flip(tuple(range(3, 3 + n)))
        return x.flatten(2).permute(1, 2, 0)


@dataclass(frozen=True)
class Lookups:
    """Rows of an embedding that a call reads.

    rows : integers of any shape
    """

    rows: Tensor

    def kept(self, mask: Tensor | None) -> Tensor:
        """Rows that count, flat; `mask` as in `Inputs.kept`."""
        if mask is not None and mask.shape == self.rows.shape:
            return self.rows[mask]
        return self.rows.reshape(-1)
