"""Weights fitted one layer after another: to the original's outputs, from the inputs met now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..layers import carry_over, kind_of
from ..layers.reparametrized import copied
from ..lockstep.anchored import Anchored
from ..lockstep.lockstep import Lockstep
from ..network.batches import device_of
from ..network.structure import Structure
from ..network.weights import Site
from ..protocols import Factors, Metric
from ..randomness import same_randomness
from .calibration import Calibration, noise, on
from .candidates import Findings, working_weight
from .fitted import Replacement, add_offset, missing_mean, parameters, write
from .free_running import Fit, FreeRunning, Make

# Of the metrics of factors.
RIDGE = 1e-2


@dataclass
class Reconstruction:
    """What has become of the weights so far.

    replacements : by the name of the weight; offsets : see `Fitted`
    """

    replacements: dict[str, Replacement] = field(default_factory=dict)
    offsets: dict[str, Tensor] = field(default_factory=dict)


def assembled(
    sites: Iterable[Site],
    make: Make,
    findings: Mapping[str, Findings],
    structure: Structure,
    device: Any,
) -> Reconstruction:
    """Replace every weight by itself."""
    done = Reconstruction()
    for site in sites:
        made = make(site)
        if made is None:
            continue
        done.replacements[site.name] = made
        means, target = findings[site.name].means, structure.takes_mean(site)
        if means is not None and target is not None:
            value = made.value(working_weight(site, device))
            done.offsets[target] = missing_mean(value, means)
    return done


def reconstruct(
    calibration: Calibration,
    sites: Iterable[Site],
    make: Make,
    fit: Fit,
    *,
    device: Any,
    ridge: float = RIDGE,
    verbose: bool | int,
) -> Reconstruction:
    """Go through a network in the order of execution; fit and replace its weights.

    sites : weights that take part
    make : gives what replaces a weight that is not fitted: that several layers share, that
        nothing reaches, or a look-up; None for nothing
    fit : gives what replaces a weight (groups, out, in, *kernel), for the metrics of its groups
    ridge : of these metrics, whose inputs have drifted: with less, layers of as many inputs as
        there are samples learn the drift by heart

    Layers whose outputs are added to others, as at the end of a residual block, make up for what
    has become of these (He, Zhang & Sun 2017, arXiv 1707.06168, on networks of several branches).
    """
    by_module: dict[str, list[Site]] = defaultdict(list)
    for site in sites:
        for module_name, _ in site.users:
            by_module[module_name].append(site)
    alone = {site.users[0][0] for found in by_module.values() for site in found if site.alone}
    structure = calibration.structure
    ends = {name: addend for name, addend in structure.addends.items() if name in alone}
    done = Reconstruction()
    with same_randomness(device_of(calibration.model)), torch.no_grad():
        networks = Lockstep(
            calibration.model,
            by_module,
            calibration.batches,
            replace(structure, addends=ends),
            max_positions=calibration.max_positions,
            seed=calibration.seed,
        )
        bar = tqdm(
            networks, desc="reconstruct", unit="layer", total=len(networks), disable=not verbose
        )
        for name in bar:
            offsets = _run_freely(
                networks, name, by_module[name], calibration, make, fit, done, device
            )
            offsets |= _fitted(
                networks, name, by_module[name], calibration, fit, done, device, ridge
            )
            _made(by_module[name], make, done)
            layer = _stand_in(networks.pristine(name), name, by_module[name], done, device)
            if layer is not None:
                networks.replace(name, layer)
                for target, offset in offsets.items():
                    add_offset(networks.successor, target, offset)
                done.offsets.update(offsets)
        for found in by_module.values():  # that no batch reaches
            _made(found, make, done)
    return done


def _made(sites: Iterable[Site], make: Make, done: Reconstruction) -> None:
    """Replace what was not fitted."""
    for site in sites:
        if site.name not in done.replacements and (made := make(site)) is not None:
            done.replacements[site.name] = made


def _run_freely(
    networks: Lockstep,
    name: str,
    sites: Iterable[Site],
    calibration: Calibration,
    make: Make,
    fit: Fit,
    done: Reconstruction,
    device: Any,
) -> dict[str, Tensor]:
    """Fit the weights of a layer that decide what they are given; give what its biases miss."""
    module = networks.pristine(name)
    kind = kind_of(module)
    own = {site.slot.name: site for site in sites if len(site.users) == 1 and not site.computed}
    recurrences = kind.recurrences(module) if kind is not None and own else ()
    calls = networks.calls(name) if recurrences else []
    if not calls:
        return {}
    layer = FreeRunning(module, name, own, make, fit, calls, calibration, device)
    found = layer.run(recurrences)
    for slot, made in found.replacements.items():
        done.replacements[own[slot].name] = made
    return {f"{name}.{bias}".lstrip("."): offset for bias, offset in found.offsets.items()}


def _fitted(
    networks: Lockstep,
    name: str,
    sites: Iterable[Site],
    calibration: Calibration,
    fit: Fit,
    done: Reconstruction,
    device: Any,
    ridge: float,
) -> dict[str, Tensor]:
    """Fit the weights of a layer that no other layer has; give what its mean outputs miss."""
    own = {
        site.slot.name: site
        for site in sites
        if len(site.users) == 1 and site.name not in done.replacements
    }
    slots = {slot: site.slot for slot, site in own.items()}
    roots = {slot: calibration.roots(site) for slot, site in own.items()}
    offsets = {}
    for slot, moments in networks.anchored(name, slots, roots).items():
        site = own[slot]
        weight = working_weight(site, device)
        target = calibration.structure.takes_mean(site)
        goal = moments.with_means() if target is None else moments
        least = [noise(*pair) for pair in zip(moments.squares, moments.inputs, strict=True)]
        made = fit(site, weight, _metrics(goal, least, weight, ridge))
        done.replacements[site.name] = made
        if target is not None:
            means = moments.inputs.to(weight.device), moments.outputs.to(weight.device)
            offsets[target] = missing_mean(made.value(weight), means)
    return offsets


def _metrics(goal: Anchored, least: Iterable[float], weight: Tensor, ridge: float) -> list[Metric]:
    """One metric for each group of a weight (groups, out, in, *kernel).

    least : what rounding leaves of inputs that never change
    """
    metrics, device = [], weight.device
    parts = zip(goal.squares, goal.cross, goal.energy, goal.roots, least, weight, strict=True)
    for inputs, cross, energy, root, rest, group in parts:
        metric = Metric(inputs.to(device), cross.to(device), float(energy.sum()), on(device, root))
        metrics.append(metric.with_ridge(group, ridge, rest))
    return metrics


def _stand_in(
    module: nn.Module, name: str, sites: Iterable[Site], done: Reconstruction, device: Any
) -> nn.Module | None:
    """Give what stands for a layer of the original with what replaces its weights, if anything."""
    factors: dict[str, Factors] = {}
    dense: dict[str, Tensor] = {}
    for site in sites:
        known = done.replacements.get(site.name)
        if known is None:
            continue
        value = known.value(working_weight(site, device))
        slot = next(slot for user, slot in site.users if user == name)
        if isinstance(value, Factors):
            factors[slot] = parameters(value, site)
        else:
            dense[slot] = value
    if not (factors or dense):
        return None
    result = copied(module)
    if factors:
        kind = kind_of(module)
        assert kind is not None
        result = kind.build(module, factors, {})
        carry_over(module, result, {})
    if dense:
        write(result, dense)
    return result
