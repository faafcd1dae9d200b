"""What stays of each weight, fitted to make up for what goes, in the order of execution."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from ...fitting.calibrated import Calibration
from ...fitting.factorizing import missing_mean, working_weight
from ...fitting.in_order import Goal, InOrder, StandIn
from ...layers import kind_of
from ...layers.writing import write_weights
from ...network.weights import Site
from ...protocols import Metric
from ...ranking import keep_largest
from ...supported import supported_least_squares
from .patterns import keep_pattern
from .pruned import PrunedWeight


class Refit(InOrder):
    """Least squares on the values that stay: the original's outputs, from the inputs met now.

    pruned : which values of each weight stay, by the name of the site
    n_rounds : 1 to keep to those. With more, only how many stay is taken over, and which do is
        decided here: from a weight without zeros, in so many rounds, those go that cost least once
        the others of their row have made up for them.
    pattern : N:M, which is kept to

    Row by row, w_S = (A'_SS + ridge)^-1 (c_S + ridge w_S): where inputs say little, values stay
    what they were. Weights that several layers share, and look-ups, keep their own values.
    """

    # Fewer values than a full weight or its factors have learn less of the drift.
    ridge = 1e-3

    def __init__(
        self,
        pruned: Mapping[str, PrunedWeight],
        calibration: Calibration,
        device: Any,
        n_rounds: int = 1,
        pattern: tuple[int, int] | None = None,
    ):
        super().__init__(calibration, device)
        self._pruned = dict(pruned)
        self._n_rounds, self._pattern = n_rounds, pattern

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
        if self._n_rounds > 1:
            kept = self._chosen(kept, goal.metrics)
            known = PrunedWeight.of(known.name, known.fingerprint, kept)
        found, _ = _fitted(kept, goal.metrics)
        found = found.to(weight.dtype)
        offset = None if goal.means is None else missing_mean(found, *goal.means)
        self._pruned[site.name] = replace(
            known, values=found[kept], offset=offset, offset_to=goal.offset_to
        )

    def _chosen(self, kept: Tensor, metrics: Sequence[Metric]) -> Tensor:
        """Choose as many values as `kept` has, or by the pattern, in rounds."""
        n_kept = int(kept.sum())
        chosen = torch.ones_like(kept)
        for number in range(1, self._n_rounds + 1):
            _, costs = _fitted(chosen, metrics, costs=True)
            assert costs is not None
            # What is zero already costs less than anything.
            costs = torch.where(chosen, costs + torch.finfo(costs.dtype).tiny, 0)
            share = (1 - number / self._n_rounds) ** 3
            if self._pattern is None:
                chosen = keep_largest(costs, round(n_kept + (kept.numel() - n_kept) * share))
            else:
                n, m = self._pattern
                chosen = keep_pattern(costs, (n + ceil((m - n) * share), m)) & chosen
        return chosen

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


def _fitted(
    kept: Tensor, metrics: Sequence[Metric], costs: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Values (groups, out, in, *kernel), float64, and what each costs in the metric."""
    parts = [
        supported_least_squares(m.gram, m.cross, part.flatten(1), costs=costs)
        for part, m in zip(kept, metrics, strict=True)
    ]
    values = torch.stack([part.values for part in parts]).reshape(kept.shape)
    if not costs:
        return values, None
    # Outputs count as what follows multiplies them by.
    weighed = [
        part.costs if m.output is None else part.costs * m.output.square()[:, None]
        for part, m in zip(parts, metrics, strict=True)
        if part.costs is not None
    ]
    return values, torch.stack(weighed).reshape(kept.shape)
