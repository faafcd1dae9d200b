"""Tensors with many zeros in fewer bytes: which numbers are not zero, and those numbers.

A bitmask has a bit for every number; in rows, each number that is not zero has a column. What takes
the fewest bytes is stored, so that a dense tensor stays as it is. A negative zero becomes a zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import torch
from torch import Tensor

# Below this it is not worth the names.
_LEAST = 1024
# Between the name of a tensor and that of a part; no name of a parameter has it.
SEPARATOR = "#"
BITMASK, ROWS = ("mask", "values"), ("starts", "columns", "values")


def packed(tensor: Tensor) -> dict[str, Tensor] | None:
    """Give the parts of a tensor under their names; None where its own bytes are fewest."""
    if tensor.numel() < _LEAST or not tensor.is_floating_point():
        return None
    kept = tensor.reshape(len(tensor), -1) != 0 if tensor.dim() else tensor[None, None] != 0
    n_kept, item = int(kept.sum()), tensor.element_size()
    index = torch.int16 if kept.shape[1] <= 2**15 else torch.int32
    sizes = {
        "dense": tensor.numel() * item,
        "bitmask": -(-tensor.numel() // 8) + n_kept * item,
        "rows": 8 * (len(kept) + 1) + n_kept * (index.itemsize + item),
    }
    smallest = min(sizes, key=lambda way: sizes[way])
    if smallest == "dense":
        return None
    values = tensor.reshape(kept.shape)[kept]
    if smallest == "bitmask":
        return {"mask": torch.from_numpy(np.packbits(kept.numpy().reshape(-1))), "values": values}
    starts = torch.zeros(len(kept) + 1, dtype=torch.int64)
    starts[1:] = kept.sum(1).cumsum(0)
    return {"starts": starts, "columns": kept.nonzero()[:, 1].to(index), "values": values}


def unpacked(parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    """Give the tensor of this shape again; parts that cannot be of one are a ValueError."""
    values, size = parts["values"], prod(shape)
    if values.dim() != 1 or not values.is_floating_point():
        raise ValueError("values that are no list of numbers")
    result = values.new_zeros(size)
    if tuple(parts) == BITMASK:
        mask = parts["mask"]
        if mask.dtype != torch.uint8 or mask.dim() != 1 or len(mask) != -(-size // 8):
            raise ValueError(f"a bitmask of {len(mask)} bytes for {size} numbers")
        kept = torch.from_numpy(np.unpackbits(mask.numpy(), count=size)).bool()
        if int(kept.sum()) != len(values):
            raise ValueError(f"{len(values)} numbers for {int(kept.sum())} places")
        result[kept] = values
    else:
        result[_places(parts, shape, len(values))] = values
    return result.reshape(shape)


def _places(parts: Mapping[str, Tensor], shape: tuple[int, ...], n_values: int) -> Tensor:
    """Where in the flattened tensor the numbers belong."""
    starts, columns = parts["starts"], parts["columns"].long()
    n_rows = shape[0] if shape else 1
    width = prod(shape[1:])
    counts = starts.diff() if starts.dim() == 1 and starts.dtype == torch.int64 else None
    if counts is None or len(counts) != n_rows or bool((counts < 0).any()):
        raise ValueError(f"starts of other rows than the {n_rows}")
    if int(starts[0]) != 0 or not int(starts[-1]) == len(columns) == n_values:
        raise ValueError(f"{n_values} numbers in {len(columns)} columns")
    if n_values and not 0 <= int(columns.min()) <= int(columns.max()) < width:
        raise ValueError(f"columns beyond the {width}")
    places = torch.arange(n_rows).repeat_interleave(counts) * width + columns
    if bool((places.diff() <= 0).any()):
        raise ValueError("columns out of order")
    return places
