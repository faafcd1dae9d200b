"""How much memory a model takes."""

from __future__ import annotations

from torch import nn

from ..metrics import count_bytes
from ..protocols import Bench, Objective


class Bytes(Objective):
    """Bytes of parameters and buffers: `skcompress.count_bytes`."""

    counted = True

    def measure(self, model: nn.Module, bench: Bench) -> int:
        return count_bytes(model)
