"""How much a model computes."""

from __future__ import annotations

from torch import nn

from ..metrics import count_flops
from ..protocols import Bench, Objective


class FLOPs(Objective):
    """Floating-point operations of one forward of the first input: `skcompress.count_flops`."""

    counted = True
    needs = ("example",)
    label = "FLOPs"

    def measure(self, model: nn.Module, bench: Bench) -> int:
        assert bench.example is not None
        args, kwargs = bench.example
        return count_flops(model, *args, **kwargs)
