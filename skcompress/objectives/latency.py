"""How long a model takes."""

from __future__ import annotations

from torch import nn

from ..metrics import measure_latency
from ..protocols import Bench, Objective


class Latency(Objective):
    """Median seconds of one forward of the first input: `skcompress.measure_latency`."""

    unit = "ms"
    scale = 1e3
    needs = ("example",)
    timed = True

    def measure(self, model: nn.Module, bench: Bench) -> float:
        assert bench.example is not None
        min_run_time = 0.2 if bench.decisive else 0.02
        return measure_latency(model, *bench.example, min_run_time=min_run_time)
