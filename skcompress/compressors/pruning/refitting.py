"""What stays of each weight, fitted to make up for what goes, in the order of execution."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...factorized import kind_of
from ...factorized.writing import write_weights
from ...selection import Site
from ...supported import supported_least_squares
from ..calibrated import Calibration
from ..factorizing import missing_mean, working_weight
from ..in_order import Goal, InOrder, StandIn
from .pruned import PrunedWeight


class Refit(InOrder):
    """Least squares on the values that stay: the original's outputs, from the inputs met now.

    pruned : which values of each weight stay, by the name of the site

    Row by row, w_S = (A'_SS + ridge)^-1 (c_S + ridge w_S): where inputs say little, values stay
    what they were. Weights that several layers share, and look-ups, keep their own values.
    """

    def __init__(self, pruned: Mapping[str, PrunedWeight], calibration: Calibration, device: Any):
        super().__init__(calibration, device)
        self._pruned = dict(pruned)

    def run(
        self, model: nn.Module, sites: Sequence[Site], verbose: bool | int
    ) -> dict[str, PrunedWeight]:
        """Give all weights, those that were fitted with their new values."""
        self.go(model, sites, verbose)
        return self._pruned

    def fit_site(self, site: Site, goal: Goal) -> None:
        weight = working_weight(site, self._device)
        known = self._pruned[site.name]
        kept = known.kept(weight.device)
        found = torch.stack(
            [_fitted(*part) for part in zip(weight, kept, goal.metrics, strict=True)]
        )
        offset = None if goal.means is None else missing_mean(found, *goal.means)
        self._pruned[site.name] = replace(
            known, values=found[kept], offset=offset, offset_to=goal.offset_to
        )

    def stand_in(self, name: str, module: nn.Module, sites: Sequence[Site]) -> StandIn:
        kind = kind_of(module)
        assert kind is not None
        result = copy.deepcopy(module)
        values = {}
        offset, offset_to = None, None
        for site in sites:
            known = self._pruned[site.name]
            slot = next(slot for user, slot in site.users if user == name)
            values[slot] = known.applied(working_weight(site, self._device))
            if known.offset is not None:
                offset, offset_to = known.offset, known.offset_to
        write_weights(kind, result, values)
        return StandIn(result, offset, offset_to)


def _fitted(weight: Tensor, kept: Tensor, metric: Any) -> Tensor:
    metric = metric.with_ridge(weight)
    found = supported_least_squares(metric.gram, metric.cross, kept.flatten(1))
    return found.reshape(weight.shape).to(weight.dtype)
