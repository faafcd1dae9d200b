"""Layers that have lost inputs, fitted to give what they gave: in order of execution.

The compressed network is played by the original one with zeros where channels are no longer read,
which gives the same values in a network of the same shape: its moments are those of what each
layer will meet, and the goal is what the original layer gave from what it met.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from skcompress.compressors.calibrated import Calibration
from skcompress.compressors.factorizing import add_offset, missing_mean
from skcompress.compressors.in_order import Goal, InOrder, StandIn
from skcompress.decompositions.regression import least_squares
from skcompress.selection import Site

from .groups import Removal
from .removing import columns, copied, matrix


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


def refitted(
    model: nn.Module,
    sites: Collection[Site],
    gone: Removal,
    calibration: Calibration,
    verbose: bool | int,
) -> dict[str, Fit]:
    """Fit each of these layers anew, by name.

    sites : weights of the layers to be fitted; each alone in its layer
    gone : what goes of each layer
    """
    refit = _Refit(gone, calibration)
    refit.go(model, sites, verbose)
    return refit.fits


def apply_(module_of: object, fits: dict[str, Fit]) -> None:
    """Write fits into the layers that `module_of` gives by name, in place."""
    for name, fit in fits.items():
        layer = module_of(name)  # type: ignore[operator]
        with torch.no_grad():
            matrix(layer).copy_(fit.weight)
            if fit.offset is not None and fit.offset_to is not None:
                add_offset(module_of(fit.offset_to), fit.offset)  # type: ignore[operator]


class _Refit(InOrder):
    """Least squares on the channels that are still read."""

    def __init__(self, gone: Removal, calibration: Calibration):
        super().__init__(calibration, None)
        self._gone = gone
        self.fits: dict[str, Fit] = {}

    def fit_site(self, site: Site, goal: Goal) -> None:
        weight = site.slot.read().detach()
        kept, result = self._without(site.name, weight)
        size = weight[0, 0, 0].numel()
        for g, (group, metric) in enumerate(zip(weight, goal.metrics, strict=True)):
            inputs = kept[g].repeat_interleave(size)
            part = group[:, kept[g]].float()
            if part.numel():
                own = replace(
                    metric, gram=metric.gram[inputs][:, inputs], cross=metric.cross[:, inputs]
                )
                result[g, :, kept[g]] = least_squares(part, own).to(result)
        offset = None if goal.means is None else missing_mean(result, *goal.means)
        self.fits[site.name] = Fit(result, offset, goal.offset_to)

    def stand_in(self, name: str, module: nn.Module, sites: Sequence[Site]) -> StandIn:
        if name not in self.fits:  # no batch reaches it
            self.fits[name] = Fit(self._without(name, matrix(module))[1])
        fit, result = self.fits[name], copied(module)
        matrix(result).copy_(fit.weight)
        return StandIn(result, fit.offset, fit.offset_to)

    def _without(self, name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Which inputs (groups, in) stay, and the weight with zeros for the others."""
        kept = torch.ones(weight.shape[0], weight.shape[2], dtype=torch.bool, device=weight.device)
        kept[columns(weight, self._gone.get(name, ([], []))[1])] = False
        result = weight.clone()
        result[~kept[:, None].expand(result.shape[:3])] = 0
        return kept, result
