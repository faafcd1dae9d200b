"""Bytes that a model takes, in memory or in a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..metrics import count_bytes
from ..protocols import Cost, CostedWeight, Sparse, Stage


class Bytes(Cost):
    """Bytes of parameters and buffers: in half precision a number takes two.

    Positions count too: which channels are pivots, where the values of a sparse term are.
    """

    unit = "bytes"

    def of_model(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        return count_bytes(model)

    def of_weight(self, weight: CostedWeight) -> int:
        return weight.numbers * weight.itemsize

    def of_stages(self, weight: CostedWeight, stages: Sequence[Stage]) -> int:
        return sum(stage.size * weight.itemsize + _positions(stage) for stage in stages)


def _positions(stage: Stage) -> int:
    """Bytes of the positions that a stage keeps beside its numbers."""
    if stage.sparse is not None:
        return stage.size * Sparse.index_dtype(stage.sparse).itemsize
    if stage.pivots is None:
        return 0
    out, inputs, *_ = stage.shape
    # All channels along the axis: the pivots and the others.
    channels = out + stage.groups * inputs if stage.pivots == 0 else stage.groups * inputs + out
    return channels * torch.int64.itemsize
