"""Layer after layer: what the original gave, from what the compressed network is given."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from ..calibration import Anchored, Lockstep, device_of, same_randomness
from ..decompositions.regression import least_squares
from ..factorized import kind_of
from ..factorized.kind import carry_over
from ..plan import Plan
from ..protocols import Decomposition, Factors, Metric
from ..selection import Site
from .calibrated import Calibration, noise, on
from .factorizing import (
    Candidate,
    FactorizedSite,
    add_offset,
    set_weight,
    stage_parameters,
    working_weight,
)
from .last_factor import refitted

# Of the ridge, where outputs are regressed on drifted inputs: with less, layers of as many inputs
# as there are samples learn the drift by heart.
RIDGE = 1e-2


class Reconstruction:
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
        self._found, self._plan, self._decompositions = found, plan, decompositions
        self._calibration, self._device, self._dense = calibration, device, dense

    def run(
        self, model: nn.Module, sites: Sequence[Site], verbose: bool | int
    ) -> dict[str, FactorizedSite]:
        """Give what was fitted, by the name of the site."""
        by_module: dict[str, list[Site]] = defaultdict(list)
        for site in sites:
            if self._takes_part(site):
                for module_name, _ in site.users:
                    by_module[module_name].append(site)
        given = self._calibration
        fitted: dict[str, FactorizedSite] = {}
        with same_randomness(device_of(model)), torch.no_grad():
            networks = Lockstep(
                model, by_module, given.batches, max_positions=given.max_positions, seed=given.seed
            )
            bar = tqdm(
                networks, desc="reconstruct", unit="layer", total=len(networks), disable=not verbose
            )
            for name in bar:
                own = {s.slot.name: s for s in by_module[name] if len(s.users) == 1}
                slots = {slot: site.slot for slot, site in own.items()}
                for slot, moments in networks.anchored(name, slots).items():
                    fitted[own[slot].name] = self._fitted(own[slot], moments)
                self._replace(networks, name, by_module[name], {**self._found, **fitted})
        return fitted

    def _takes_part(self, site: Site) -> bool:
        if self._plan[site.name].rank is not None:
            return True
        # A weight that is computed from other tensors cannot be set.
        stored = site.slot.read().detach()
        parameter = site.slot.parameters[0]
        return self._dense and site.alone and stored.data_ptr() == parameter.data_ptr()

    def _fitted(self, site: Site, given: Anchored) -> FactorizedSite:
        weight = working_weight(site, self._device)
        known, planned = self._found[site.name], self._plan[site.name]
        offset_to = self._calibration.offset_to(site)
        moments = given if offset_to is None else given.centred()
        metrics = []
        rest = noise(given.gram)
        for g, root in enumerate(self._calibration.output_roots(site)):
            gram, cross = (m[g].to(weight.device) for m in (moments.gram, moments.cross))
            power = moments.energy[g] if root is None else moments.energy[g] * root.square()
            output = on(weight.device, root)
            metrics.append(
                Metric(gram, cross, float(power.sum()), output, ridge=RIDGE, noise=rest[g])
            )
        means = given.inputs.to(weight.device), given.outputs.to(weight.device)
        known = replace(known, means=means if offset_to is not None else None, offset_to=offset_to)
        pairs = list(zip(weight, metrics, strict=True))
        if planned.rank is None:
            return replace(known, refitted=torch.stack([least_squares(*pair) for pair in pairs]))
        assert planned.scheme is not None
        chosen = next(c for c in known.candidates if c.curve.scheme == planned.scheme)
        decomposition = self._decompositions[planned.scheme]
        parts = [
            refitted(decomposition, part, *pair, planned.rank)
            for part, pair in zip(chosen.parts, pairs, strict=True)
        ]
        return replace(known, candidates=(Candidate(parts),))

    def _replace(
        self,
        networks: Lockstep,
        name: str,
        sites: Sequence[Site],
        found: Mapping[str, FactorizedSite],
    ) -> None:
        """Put the stand-in of one module into the successor, wherever it is used."""
        module = networks.pristine(name)
        factors: dict[str, Factors] = {}
        offset, offset_to = None, None
        stand_in = module
        for site in sites:
            known, planned = found[site.name], self._plan[site.name]
            if planned.rank is not None:
                made, missing = stage_parameters(
                    site, planned, known, self._decompositions, self._device, calibrated=True
                )
                factors[next(slot for user, slot in site.users if user == name)] = made
                if missing is not None:
                    offset, offset_to = missing, known.offset_to
            elif known.refitted is not None:
                stand_in = copy.deepcopy(module)
                offset, offset_to = set_weight(stand_in, known), known.offset_to
        if factors:
            kind = kind_of(module)
            assert kind is not None
            stand_in = kind.build(module, factors, {})
            carry_over(module, stand_in, {})
        if stand_in is not module:
            networks.replace(name, stand_in)
        if offset is not None and offset_to is not None:
            add_offset(networks.successor(offset_to), offset)
