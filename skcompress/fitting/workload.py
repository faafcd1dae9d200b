"""A budget of FLOPs: what each option of each weight costs in one forward."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from torch import nn

from ..errors import BudgetError
from ..layers import kind_of
from ..layers.chain import merge_stages
from ..network.calls import Call, count_stages, dense_stages
from ..network.weights import Site
from ..protocols import Allocation, Choice, Curve, Decomposition, Layer, Stage
from .factorizing import FactorizedSite
from .planning import choose_options

UNREACHED = "the first batch of the data does not reach it: no FLOPs to save"
NO_FLOPS = "it takes no FLOPs"

Calls = Mapping[str, Sequence[Call]]
# Kernel of each stage of a chain, and the axis of its pivots: what the positions depend on at
# which the stages work, since a stage with pivots takes no stride.
Form = tuple[tuple[tuple[int, ...], int | None], ...]


@dataclass(frozen=True)
class _Offers:
    """Options of one curve whose chains have the same form.

    probe : stages of the first, of the whole layer
    options : which they are; sizes : stored numbers (options, stages)
    """

    probe: tuple[Stage, ...]
    options: list[int]
    sizes: list[list[int]]


@dataclass(frozen=True)
class Workload:
    """FLOPs of one forward: of the network, and of every option of each weight.

    total : of the network
    layers : as allocations see them, with FLOPs for stored numbers. Options that store as
        many numbers as the dense weight cost as much as it, so that none is chosen.
    orders : per layer and curve, which option of the original curve each one is
    reasons : why a layer stays dense, where it can be told beforehand
    """

    total: int
    layers: list[Layer]
    orders: list[list[np.ndarray]]
    reasons: list[str | None]

    def choose(
        self, where: Sequence[Site], rank: Any, allocation: Allocation
    ) -> tuple[list[Choice | None], list[str | None], int]:
        """Choose as `choose_options` does, within a budget of FLOPs; and give the FLOPs kept.

        The options chosen are those of the original curves.
        """
        try:
            choices, reasons = choose_options(
                self.layers, where, rank, allocation, self.total, gain="smaller and faster"
            )
        except BudgetError as error:
            raise error.of("FLOPs") from None
        kept = self.total
        for i, choice in enumerate(choices):
            if choice is not None:
                layer, number, option = self.layers[i], choice.curve, choice.option
                kept -= layer.dense - int(layer.curves[number].costs[option])
                choices[i] = Choice(number, int(self.orders[i][number][option]))
        why = [known or reason for known, reason in zip(self.reasons, reasons, strict=True)]
        return choices, why, kept


def workload(
    sites: Sequence[Site],
    found: Sequence[FactorizedSite],
    decompositions: Mapping[str, Decomposition],
    total: int,
    calls: Calls,
) -> Workload:
    """Count the FLOPs of every option.

    found : of each site; total, calls : of the network, as `count_calls` gives them
    """
    offers: dict[str, list[dict[Form, _Offers]]] = {}
    reasons = [_refusal(site, calls) for site in sites]
    for site, known, reason in zip(sites, found, reasons, strict=True):
        if reason is None:
            offers[site.name] = [
                _offers(site, known.dense, curve, decompositions[curve.scheme])
                for curve in known.layer.curves
            ]
    rates = _rates(sites, offers, calls)
    result = Workload(total, [], [], reasons)
    for number, (site, known) in enumerate(zip(sites, found, strict=True)):
        dense = _dense(site, calls) if reasons[number] is None and known.candidates else 0
        curves, orders = [], []
        if dense == 0:
            reasons[number] = reasons[number] or NO_FLOPS
        else:
            for curve, by_form in zip(known.layer.curves, offers[site.name], strict=True):
                costs = np.full(len(curve.costs), dense)
                for form, offer in by_form.items():
                    costs[offer.options] = np.array(offer.sizes) @ rates[site.name, form]
                order = np.argsort(costs, kind="stable")
                orders.append(order)
                ranks, errors = curve.ranks[order], curve.errors[order]
                curves.append(replace(curve, ranks=ranks, costs=costs[order], errors=errors))
        result.layers.append(Layer(site.name, dense, tuple(curves)))
        result.orders.append(orders)
    return result


def _refusal(site: Site, calls: Calls) -> str | None:
    for module in site.modules:
        kind = kind_of(module)
        if kind is not None and kind.saves_no_flops is not None:
            return kind.saves_no_flops
    return None if any(calls.get(name) for name, _ in site.users) else UNREACHED


def _offers(
    site: Site, numbers: int, curve: Curve, decomposition: Decomposition
) -> dict[Form, _Offers]:
    """Sort out, by the form of their chains, what stores less than the `numbers` of the weight."""
    groups, *shape = site.slot.shape
    found: dict[Form, _Offers] = {}
    for option in np.flatnonzero(curve.costs < numbers).tolist():
        stages = decomposition.stages(shape, curve.rank_at(option))
        form = tuple((stage.shape[2:], stage.pivots) for stage in stages)
        if form not in found:
            found[form] = _Offers(merge_stages(stages, groups), [], [])
        found[form].options.append(option)
        # Stage.size is numpy's product: slow for so few factors, so often.
        found[form].sizes.append([groups * prod(stage.shape) for stage in stages])
    return found


def _dense(site: Site, calls: Calls) -> int:
    """FLOPs of a weight as it is, over all layers that share it."""
    flops = 0
    for (name, slot), module in zip(site.users, site.modules, strict=True):
        own = calls.get(name, ())
        if slot:  # one of several weights of the layer
            ((count,),) = count_stages(module, own, {slot: dense_stages(site.slot)}).values()
        else:  # with what a parametrization computes, which goes with the weight
            count = sum(call.flops for call in own)
        flops += count
    return flops


def _rates(
    sites: Sequence[Site], offers: Mapping[str, Sequence[Mapping[Form, _Offers]]], calls: Calls
) -> dict[tuple[str, Form], list[int]]:
    """FLOPs per stored number of each stage, by site and form, over all layers that share it."""
    slots: dict[str, dict[str, Site]] = defaultdict(dict)
    modules: dict[str, nn.Module] = {}
    for site in sites:
        for (name, slot), module in zip(site.users, site.modules, strict=True):
            slots[name][slot], modules[name] = site, module
    probes: dict[str, dict[Form, tuple[Stage, ...]]] = {
        name: {form: offer.probe for by_form in curves for form, offer in by_form.items()}
        for name, curves in offers.items()
    }
    rates: dict[tuple[str, Form], list[int]] = {}
    for name, site_of in slots.items():
        # All weights of a layer at once, where they have chains of the same form.
        for form in {form: None for site in site_of.values() for form in probes.get(site.name, ())}:
            chains = {
                slot: probes[site.name][form]
                for slot, site in site_of.items()
                if form in probes.get(site.name, ())
            }
            counted = count_stages(modules[name], calls.get(name, ()), chains)
            for slot, flops in counted.items():
                own = [n // stage.size for n, stage in zip(flops, chains[slot], strict=True)]
                key = (site_of[slot].name, form)
                rates[key] = [
                    a + b for a, b in zip(rates.get(key, [0] * len(own)), own, strict=True)
                ]
    return rates
