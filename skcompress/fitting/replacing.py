"""From a plan, and what was found out for it, to a smaller copy of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import CalibratedWeightError
from ..layers import substitute
from ..network.weights import Selection
from ..plan import Plan
from ..protocols import Decomposition
from .factorizing import FactorizedSite, add_offset, set_weight, stage_parameters

Known = Callable[[str], FactorizedSite | None]


def replaced(
    model: nn.Module,
    selection: Selection,
    plan: Plan,
    known: Known,
    decompositions: Mapping[str, Decomposition],
    device: Any,
    *,
    calibrated: bool,
) -> nn.Module:
    """Copy `model` with the planned layers replaced.

    selection : the weights of `model`; known : what the expensive step found out about each,
    asked for once; calibrated : whether nothing else will do, since data took part in it
    """
    factors: dict[str, dict[str, Any]] = {}
    refitted: dict[str, FactorizedSite] = {}
    offsets: dict[str, Tensor] = {}
    for site in selection.sites:
        planned, found = plan[site.name], known(site.name)
        if planned.rank is not None:
            made, offset = stage_parameters(
                site, planned, found, decompositions, device, calibrated=calibrated
            )
            for module_name, slot_name in site.users:
                factors.setdefault(module_name, {})[slot_name] = made
            if offset is not None and found is not None and found.offset_to is not None:
                offsets[found.offset_to] = offset
        elif found is not None and found.refitted is not None:
            stored = site.slot.read().detach()
            if not (stored.is_meta or found.is_of(site)):
                raise CalibratedWeightError(site.name)
            refitted[site.users[0][0]] = found
    result = substitute(model, factors)
    for name, found in refitted.items():
        offset = set_weight(result.get_submodule(name), found)
        if offset is not None and found.offset_to is not None:
            offsets[found.offset_to] = offset
    for name, offset in offsets.items():
        add_offset(result.get_submodule(name), offset)
    return result
