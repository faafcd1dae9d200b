"""Floating-point operations of one forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from ..metrics import count_flops, flop_counter
from ..protocols import Cost, CostedWeight, Options, Stage

UNREACHED = "the first batch of the data does not reach it: no FLOPs to save"
NO_FLOPS = "it takes no FLOPs"


class FLOPs(Cost):
    """Floating-point operations of one forward of the first batch, as torch counts them.

    The stand-ins themselves are counted, on the meta device, where nothing is computed. A stage
    multiplies each of its numbers at as many positions whatever the rank is: these depend on the
    kernels of the stages, and on which have pivots, only, so that chains of one form are counted
    once.
    """

    unit = "FLOPs"
    gain = "smaller and faster"
    needs_inputs = True

    def of_model(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        return count_flops(model, *args, **kwargs)

    def of_weight(self, weight: CostedWeight) -> int:
        return sum(_counted(weight, None))

    def of_stages(self, weight: CostedWeight, stages: Sequence[Stage]) -> int:
        return sum(_counted(weight, stages))

    def of_options(self, weight: CostedWeight, options: Options) -> Sequence[float]:
        rates: dict[Any, np.ndarray] = {}
        costs = []
        for stages in options:
            form = tuple((s.shape[2:], s.groups, s.pivots, s.sparse is None) for s in stages)
            sizes = np.array([stage.size for stage in stages])
            if form not in rates:
                rates[form] = np.array(_counted(weight, stages)) // sizes
            costs.append(int(rates[form] @ sizes))
        return costs

    def refusal(self, weight: CostedWeight) -> str | None:
        if weight.refusal is not None:
            return weight.refusal
        assert weight.calls is not None
        if next(weight.calls(None), None) is None:
            return UNREACHED
        return None if self.of_weight(weight) else NO_FLOPS


def _counted(weight: CostedWeight, stages: Sequence[Stage] | None) -> list[int]:
    """FLOPs of each stage, over all calls of all layers that have the weight."""
    assert weight.calls is not None
    flops = [0] * (1 if stages is None else len(stages))
    for call in weight.calls(stages):
        with flop_counter() as counter:
            call.module(*call.args, **call.kwargs)
        counts = counter.get_flop_counts()
        for j, name in enumerate(call.stages):
            own = f"{type(call.module).__name__}.{name}".rstrip(".")
            flops[j] += call.times * sum(counts.get(own, {}).values())
    return flops
