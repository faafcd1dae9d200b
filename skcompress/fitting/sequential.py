"""Layer after layer: what the original gave, from what the compressed network is given."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..decompositions.regression import least_squares
from ..layers import carry_over, kind_of
from ..network.weights import Site
from ..plan import Plan
from ..protocols import Decomposition, Factors
from .calibrated import Calibration
from .factorizing import Candidate, FactorizedSite, set_weight, stage_parameters, working_weight
from .in_order import Goal, InOrder, StandIn
from .last_factor import refitted


class Reconstruction(InOrder):
    """Fits the factors of every planned weight anew, in the order of execution.

    found : what is known of each site; it stays as it is
    dense : whether weights that stay dense are fitted as well

    Weights that several layers share, and look-ups, keep the factors that they have.
    """

    def __init__(
        self,
        found: Mapping[str, FactorizedSite],
        plan: Plan,
        decompositions: Mapping[str, Decomposition],
        calibration: Calibration,
        device: Any,
        *,
        dense: bool,
    ):
        super().__init__(calibration, device)
        self._found, self._plan, self._decompositions = found, plan, decompositions
        self._dense = dense
        self._fitted: dict[str, FactorizedSite] = {}

    def run(
        self, model: nn.Module, sites: Sequence[Site], verbose: bool | int
    ) -> dict[str, FactorizedSite]:
        """Give what was fitted, by the name of the site."""
        self.go(model, filter(self._takes_part, sites), verbose)
        return self._fitted

    def _takes_part(self, site: Site) -> bool:
        if self._plan[site.name].rank is not None:
            return True
        # A weight that is computed from other tensors cannot be set.
        return self._dense and site.alone and not site.computed

    def fit_site(self, site: Site, goal: Goal) -> None:
        weight = working_weight(site, self._device)
        known, planned = self._found[site.name], self._plan[site.name]
        known = replace(known, means=goal.means, offset_to=goal.offset_to)
        pairs = list(zip(weight, goal.metrics, strict=True))
        if planned.rank is None:
            refit = torch.stack([least_squares(*pair) for pair in pairs])
            self._fitted[site.name] = replace(known, refitted=refit)
            return
        assert planned.scheme is not None
        chosen = next(c for c in known.candidates if c.curve.scheme == planned.scheme)
        decomposition = self._decompositions[planned.scheme]
        parts = [
            refitted(decomposition, part, *pair, planned.rank)
            for part, pair in zip(chosen.parts, pairs, strict=True)
        ]
        self._fitted[site.name] = replace(known, candidates=(Candidate(parts),))

    def stand_in(self, name: str, module: nn.Module, sites: Sequence[Site]) -> StandIn | None:
        factors: dict[str, Factors] = {}
        offset, offset_to = None, None
        for site in sites:
            known = self._fitted.get(site.name, self._found[site.name])
            planned = self._plan[site.name]
            if planned.rank is not None:
                made, missing = stage_parameters(
                    site, planned, known, self._decompositions, self._device, calibrated=True
                )
                factors[next(slot for user, slot in site.users if user == name)] = made
                if missing is not None:
                    offset, offset_to = missing, known.offset_to
            elif known.refitted is not None:
                dense = copy.deepcopy(module)
                return StandIn(dense, set_weight(dense, known), known.offset_to)
        if not factors:
            return None
        kind = kind_of(module)
        assert kind is not None
        result = kind.build(module, factors, {})
        carry_over(module, result, {})
        return StandIn(result, offset, offset_to)
