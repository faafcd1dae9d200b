"""Layer after layer: what the original gave, from what the compressed network is given."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..calibration import Anchored, Batches, anchored, calls_in_order, observer
from ..factorized import kind_of
from ..factorized.kind import carry_over
from ..plan import LayerPlan, Plan
from ..protocols import Decomposition, Factors, Metric
from ..selection import Site
from .calibrated import takes_offset
from .factorizing import Candidate, FactorizedSite, stage_parameters, working_weight

# Of the ridge, where outputs are regressed on drifted inputs: with less, layers of as many inputs
# as there are samples learn the drift by heart.
RIDGE = 1e-2


def refit(
    model: nn.Module,
    sites: Sequence[Site],
    found: Mapping[str, FactorizedSite],
    plan: Plan,
    decompositions: Mapping[str, Decomposition],
    batches: Batches,
    device: Any,
    verbose: bool | int,
) -> dict[str, FactorizedSite]:
    """Fit the factors of every planned weight anew, in order of execution.

    found : what is known of each site; it stays as it is

    Gives those that were fitted. Weights that several layers share, and look-ups, keep
    the factors that they have.
    """
    original, successor = observer(model), observer(model)
    by_module: dict[str, list[Site]] = defaultdict(list)
    for site in sites:
        if plan[site.name].rank is not None:
            for module_name, _ in site.users:
                by_module[module_name].append(site)
    fitted: dict[str, FactorizedSite] = {}
    calls = calls_in_order(original, by_module, batches)
    for name in tqdm(calls, desc="reconstruct", unit="layer", disable=not verbose):
        own = [site for site in by_module[name] if len(site.users) == 1]
        moments = anchored(
            original, successor, name, calls[name], {s.slot.name: s.slot for s in own}, batches
        )
        for site in own:
            if site.slot.name in moments:
                weight = working_weight(site, device)
                given = moments[site.slot.name]
                fitted[site.name] = _refitted(
                    site, weight, found[site.name], plan[site.name], given, decompositions
                )
        latest = {**found, **fitted}
        _replace(successor, name, by_module[name], latest, plan, decompositions, device)
    return fitted


def _refitted(
    site: Site,
    weight: Tensor,
    known: FactorizedSite,
    planned: LayerPlan,
    given: Anchored,
    decompositions: Mapping[str, Decomposition],
) -> FactorizedSite:
    assert planned.scheme is not None
    assert planned.rank is not None
    decomposition = decompositions[planned.scheme]
    centred = takes_offset(site)
    moments = given.centred() if centred else given
    parts = []
    for g, group in enumerate(weight):
        gram, cross = (m[g].to(weight.device) for m in (moments.gram, moments.cross))
        metric = Metric(gram, cross, float(moments.energy[g]), RIDGE)
        parts.append(decomposition.regress(group, metric).trim(planned.rank))
    means = (given.inputs.to(weight.device), given.outputs.to(weight.device)) if centred else None
    return replace(known, candidates=(Candidate(repr(decomposition), parts),), means=means)


def _replace(
    successor: nn.Module,
    name: str,
    sites: Sequence[Site],
    found: Mapping[str, FactorizedSite],
    plan: Plan,
    decompositions: Mapping[str, Decomposition],
    device: Any,
) -> None:
    """Put the stand-in of one module into the successor, wherever it is used."""
    module = successor.get_submodule(name)
    kind = kind_of(module)
    assert kind is not None
    factors: dict[str, Factors] = {}
    offset = None
    for site in sites:
        known = found[site.name]
        made, missing = stage_parameters(
            site, plan[site.name], known, decompositions, device, calibrated=True
        )
        factors[next(slot for user, slot in site.users if user == name)] = made
        offset = offset if missing is None else missing
    stand_in = kind.build(module, factors, {})
    carry_over(module, stand_in, {})
    if offset is not None:
        with torch.no_grad():
            stand_in.bias.add_(offset)  # type: ignore[union-attr, operator]
    for parent in list(successor.modules()):
        for child, inner in list(parent.named_children()):
            if inner is module:
                setattr(parent, child, stand_in)
