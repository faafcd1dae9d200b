"""Layers fitted to give what they gave, without the channels that go: in order of execution.

The compressed network is played by the original one with zeros where channels are no longer read,
which gives the same values in a network of the same shape: its moments are those of what each
layer will meet, and the goal is what the original layer gave from what it met.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from skcompress.fitting.calibrated import Calibration
from skcompress.fitting.factorizing import add_offset, missing_mean
from skcompress.fitting.in_order import Goal, InOrder, StandIn
from torch import Tensor, nn

from skcompress.decompositions.regression import least_squares
from skcompress.layers.reparametrized import copied
from skcompress.network.weights import Site

from .groups import Removal
from .removing import columns, matrix


@dataclass(frozen=True)
class Fit:
    """What a layer gets instead of its weight, before channels are taken out of it.

    weight : (groups, out, in, *kernel), zero where channels go
    offset : (groups * out,), added to the outputs; None for nothing
    offset_to : name of the module that adds it: the layer, or the batch normalisation after it
    """

    weight: Tensor
    offset: Tensor | None = None
    offset_to: str | None = None


class ChannelRefit(InOrder):
    """Least squares on the inputs that stay, one layer after another.

    gone : what goes of each layer
    """

    def __init__(self, gone: Removal, calibration: Calibration):
        super().__init__(calibration, None)
        self._gone = gone
        self._fits: dict[str, Fit] = {}

    def run(self, model: nn.Module, sites: Sequence[Site], verbose: bool | int) -> dict[str, Fit]:
        """Give what was fitted by the name of the layer; each of these weights alone in its own."""
        self.go(model, sites, verbose)
        return self._fits

    def fit_site(self, site: Site, goal: Goal) -> None:
        name = site.users[0][0]
        weight = site.slot.read().detach()
        result = torch.zeros_like(weight, memory_format=torch.contiguous_format)
        stays = self._stays(name, weight)
        size = weight[0, 0, 0].numel()
        for g, metric in enumerate(goal.metrics):
            inputs = stays[g].repeat_interleave(size)
            if not bool(inputs.any()):
                continue
            part = weight[g][:, stays[g]].to(torch.promote_types(weight.dtype, torch.float32))
            seen = replace(metric, inputs=metric.inputs.of(inputs), cross=metric.cross[:, inputs])
            result[g][:, stays[g]] = least_squares(part, seen).to(weight.dtype)
        offset = None if goal.means is None else missing_mean(result, *goal.means)
        self._fits[name] = Fit(result, offset, goal.offset_to)

    def stand_in(self, name: str, module: nn.Module, sites: Sequence[Site]) -> StandIn | None:
        layer = copied(module)
        weight = matrix(layer)
        if name not in self._fits:  # nothing was collected for it
            weight[~self._stays(name, weight)[:, None].expand(weight.shape[:3])] = 0
            return StandIn(layer)
        fit = self._fits[name]
        weight.copy_(fit.weight)
        return StandIn(layer, fit.offset, fit.offset_to)

    def _stays(self, name: str, weight: Tensor) -> Tensor:
        """Which inputs stay, (groups, in)."""
        stays = torch.ones(weight.shape[0], weight.shape[2], dtype=torch.bool, device=weight.device)
        stays[columns(weight, self._gone.get(name, ([], []))[1])] = False
        return stays


@torch.no_grad()
def apply_(module_of: Callable[[str], nn.Module], fits: Mapping[str, Fit]) -> None:
    """Write fits into the layers that `module_of` gives by name, in place."""
    for name, fit in fits.items():
        matrix(module_of(name)).copy_(fit.weight)
        if fit.offset is not None and fit.offset_to is not None:
            add_offset(module_of(fit.offset_to), fit.offset)
