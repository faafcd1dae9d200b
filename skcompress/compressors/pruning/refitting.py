"""What stays of each weight, fitted to make up for what goes, in the order of execution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil

import torch
from torch import Tensor

from ...network.weights import Site
from ...protocols import Metric
from ...ranking import keep_largest
from ...supported import supported_least_squares
from .patterns import keep_pattern
from .pruned import PrunedWeight

# Fewer values than a full weight or its factors have learn less of the drift.
RIDGE = 1e-3


class Refit:
    """Least squares on the values that stay: the original's outputs, from the inputs met now.

    pruned : which values of each weight stay, by the name of the site
    n_rounds : 1 to keep to those. With more, only how many stay is taken over, and which do is
        decided here: from all values that are not zero, in so many rounds, those go that cost least
        once the others of their row have made up for them.
    pattern : N:M, which is kept to

    Row by row, w_S = (A'_SS + ridge)^-1 (c_S + ridge w_S): where inputs say little, values stay
    what they were. Weights that several layers share, and look-ups, keep their own values.
    """

    def __init__(
        self,
        pruned: Mapping[str, PrunedWeight],
        n_rounds: int = 1,
        pattern: tuple[int, int] | None = None,
    ):
        self._pruned, self._n_rounds, self._pattern = pruned, n_rounds, pattern

    def of_weight(self, site: Site) -> PrunedWeight:
        """Give a weight with its own values."""
        return self._pruned[site.name]

    def of_inputs(self, site: Site, weight: Tensor, metrics: Sequence[Metric]) -> PrunedWeight:
        """Fit the values that stay of a weight for these inputs and goals."""
        known = self._pruned[site.name]
        kept = known.kept(weight.device)
        if self._n_rounds > 1:
            kept = self._chosen(kept, weight != 0, metrics)
            known = PrunedWeight.of(known.name, known.fingerprint, kept)
        # What was zero before stays so, also where more values may stay than are not.
        found, _ = _fitted(kept & (weight != 0), metrics)
        return replace(known, values=found.to(weight.dtype)[kept])

    def _chosen(self, kept: Tensor, nonzero: Tensor, metrics: Sequence[Metric]) -> Tensor:
        """Choose as many values as `kept` has, or by the pattern, in rounds; none that is zero."""
        n_kept = int(kept.sum())
        chosen = nonzero
        for number in range(1, self._n_rounds + 1):
            _, costs = _fitted(chosen, metrics, costs=True)
            assert costs is not None
            # What is zero already costs less than anything.
            costs = torch.where(chosen, costs + torch.finfo(costs.dtype).tiny, 0)
            share = (1 - number / self._n_rounds) ** 3
            if self._pattern is None:
                n_left = round(n_kept + (kept.numel() - n_kept) * share)
                chosen = keep_largest(costs, n_left) & chosen
            else:
                n, m = self._pattern
                chosen = keep_pattern(costs, (n + ceil((m - n) * share), m)) & chosen
        return chosen


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
