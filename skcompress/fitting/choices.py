"""From the options of all weights to a plan, and from a plan to another model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import sqrt
from numbers import Integral
from typing import Any

import numpy as np

from .. import registry
from ..errors import BudgetError, PlanMismatchError
from ..network.weights import Pattern, Selection, Site, flat_shape, named
from ..plan import LayerPlan, Plan, sizes
from ..protocols import Allocation, Choice, Cost, Curve, Decomposition, Layer
from .offers import WeightOffers

NOT_WORTH_IT = "keeping it dense is the best use of the budget"
NEVER_SMALLER = "no rank makes it {}"


def rank_patterns(rank: Any) -> list[Pattern]:
    """Name patterns of a rank that is a dict."""
    return list(rank) if isinstance(rank, dict) else []


def asked_ranks(rank: Any) -> set[int]:
    """Whole numbers that are asked for as ranks."""
    values = rank.values() if isinstance(rank, dict) else [rank]
    return {int(value) for value in values if isinstance(value, Integral)}


def choose_options(
    layers: Sequence[Layer],
    where: Sequence[Site],
    rank: Any,
    allocation: Allocation,
    n_total: float,
    cost: Cost,
) -> tuple[list[Choice | None], list[str | None]]:
    """Choose an option per weight, and say of each that stays dense why.

    where : the sites in the model, for the patterns of a rank that is a dict
    n_total : what the whole model costs, in the unit of the layers
    cost : what the budget is one of
    """
    if not isinstance(rank, dict):
        n_fixed = n_total - sum(layer.dense for layer in layers)
        try:
            return _choose(layers, rank, allocation, n_fixed, cost.gain)
        except BudgetError as error:
            raise error.of(cost.unit) from None
    choices: list[Choice | None] = [None] * len(layers)
    reasons: list[str | None] = ["no pattern of rank matches it"] * len(layers)
    open_ = set(range(len(layers)))
    for pattern, value in rank.items():
        hit = {id(site) for site in named(pattern, where)}
        members = [i for i in sorted(open_) if id(where[i]) in hit]
        open_.difference_update(members)
        if not members:  # all of it was named before
            continue
        chosen, why = _choose([layers[i] for i in members], value, allocation, 0, cost.gain)
        for i, choice, reason in zip(members, chosen, why, strict=True):
            choices[i], reasons[i] = choice, reason
    return choices, reasons


def _choose(
    layers: Sequence[Layer], rank: Any, allocation: Allocation, n_fixed: float, gain: str
) -> tuple[list[Choice | None], list[str | None]]:
    if isinstance(rank, Integral):
        choices = [_fixed(layer, int(rank)) for layer in layers]
        why = [_why_not_fixed(layer, int(rank), gain) for layer in layers]
    else:
        if isinstance(rank, str):
            allocation = registry.make("allocations", "auto")
            rank = 1.0
        choices = allocation.allocate(layers, float(rank), n_fixed)
        why = [_why_dense(layer, float(rank), gain) for layer in layers]
    reasons = [w if choice is None else None for choice, w in zip(choices, why, strict=True)]
    return choices, reasons


def _why_dense(layer: Layer, rank: float, gain: str) -> str:
    """Say why a layer stays dense whose options an allocation did not take."""
    costs = [float(c.costs.min()) for c in layer.curves if (c.costs < layer.dense).any()]
    if not costs:
        return NEVER_SMALLER.format(gain)
    least = min(costs) / layer.dense
    return NOT_WORTH_IT if least <= rank else f"{NOT_WORTH_IT}: no rank keeps less than {least:.1%}"


def _positions(curve: Curve, rank: int) -> np.ndarray:
    """Options of a curve at which every part of the rank is `rank`: one or none."""
    ranks = curve.ranks.reshape(len(curve.costs), -1)
    return np.flatnonzero((ranks == rank).all(axis=1))


def _why_not_fixed(layer: Layer, rank: int, gain: str) -> str:
    if any(len(_positions(curve, rank)) for curve in layer.curves):
        return f"rank {rank} would not make it {gain}"
    return f"rank {rank} is not on offer for it"


def _fixed(layer: Layer, rank: int) -> Choice | None:
    """Of the curves that get smaller at `rank`, the one that loses least; then the cheapest."""
    best: tuple[float, int] | None = None
    chosen = None
    for number, curve in enumerate(layer.curves):
        found = _positions(curve, rank)
        if len(found) and curve.costs[found[0]] < layer.dense:
            value = (float(curve.errors[found[0]]), int(curve.costs[found[0]]))
            if best is None or value < best:
                best, chosen = value, Choice(number, int(found[0]))
    return chosen


def make_plan(
    selection: Selection,
    offers: Sequence[WeightOffers],
    choices: Sequence[Choice | None],
    reasons: Sequence[str | None],
    decompositions: Sequence[Decomposition],
) -> Plan:
    """Say of each weight which option it gets.

    decompositions : all that competed, for what they say of weights that none of them cuts up
    """
    about: dict[str, dict[str, Any]] = {}
    for site, found, choice, reason in zip(selection.sites, offers, choices, reasons, strict=True):
        shape = site.slot.shape[1:]
        row: dict[str, Any] = {"reason": found.reason or reason}
        about[site.name] = row
        if choice is not None:
            offer = found.offers[choice.curve]
            rank = offer.curve.rank_at(choice.option)
            row.update(
                scheme=offer.scheme,
                rank=rank,
                full_rank=offer.curve.full_rank,
                after=int(offer.numbers[choice.option]),
                error=relative_error(offer.curve, choice.option),
                stages=offer.stages(shape, rank),
            )
        elif not (found.offers or found.reason):
            row["reason"] = why_unsupported(shape, decompositions)
    return plan_of(selection, about)


def plan_of(selection: Selection, about: Mapping[str, Mapping[str, Any]]) -> Plan:
    """One row per weight or untouched module, in the order of the model.

    about : fields of `LayerPlan` by the name of the weight, where they are not those of one that
        stays as it is
    """
    rows = {
        left.name: LayerPlan(
            left.name, left.kind, left.shape, left.size, left.size, reason=left.reason
        )
        for left in selection.left
    }
    for site in selection.sites:
        row = LayerPlan(
            site.name,
            site.kind,
            flat_shape(site.slot.shape),
            before=site.slot.size,
            after=site.slot.size,
            groups=site.slot.groups,
            shared_with=tuple(module for module, _ in site.users[1:]),
        )
        rows[site.name] = replace(row, **about.get(site.name, {}))
    return Plan(tuple(rows[name] for name in selection.order if name in rows))


def why_unsupported(shape: Sequence[int], decompositions: Sequence[Decomposition]) -> str:
    """Say of each decomposition why it cannot cut up a weight (out, in, *kernel)."""
    reasons = {d.scheme: d.unsupported(shape) for d in decompositions}
    return "; ".join(f"{name}: {why}" for name, why in reasons.items() if why)


def relative_error(curve: Curve, option: int) -> float:
    """Norm of what is lost, as a fraction of the weight's norm."""
    return sqrt(float(curve.errors[option]) / curve.total) if curve.total > 0 else 0.0


def restore_ties(plan: Plan, selection: Selection) -> None:
    """Share again, in place, what `module.to("meta")` has made separate.

    torch gives every layer a meta parameter of its own when it moves a model there; with
    no values to differ in, the plan says which of them are one.
    """
    sites = {site.name: site for site in selection.sites}
    for planned in plan:
        for name in planned.shared_with:
            first, other = sites.get(planned.name), sites.get(name)
            if first and other and all(p.is_meta for p in other.slot.parameters):
                first.users += other.users
                first.modules += other.modules
                selection.sites.remove(other)


def compare_to_plan(plan: Plan, selection: Selection) -> None:
    """Refuse a model whose weights are not those of the plan, naming the first difference."""
    found = {left.name: (left.kind, left.shape) for left in selection.left}
    found |= {s.name: (s.kind, flat_shape(s.slot.shape)) for s in selection.sites}
    sites = {site.name: site for site in selection.sites}
    refused = {left.name: left.reason for left in selection.left}
    shared = {module for site in selection.sites for module, _ in site.users[1:]}
    for planned in plan:
        name, expected = planned.name, _words(planned.kind, planned.shape)
        if name not in found:
            received = "now shares its weight" if name in shared else "is missing"
            raise PlanMismatchError(name, received, expected)
        if found[name] != (planned.kind, planned.shape):
            raise PlanMismatchError(name, f"is {_words(*found[name])}", expected)
        if planned.reason is None and name in refused:
            received = f"cannot be compressed ({refused[name]})"
            raise PlanMismatchError(name, received, "it to be")
        users = tuple(module for module, _ in sites[name].users[1:]) if name in sites else ()
        if users != planned.shared_with and name in sites:
            with_whom = ", ".join(users) or "no other layer"
            expected = f"{', '.join(planned.shared_with) or 'no other layer'} to share it"
            raise PlanMismatchError(name, f"shares its weight with {with_whom}", expected)
    known = {planned.name for planned in plan}
    for name in selection.order:
        if name in found and name not in known:
            raise PlanMismatchError(name, f"is {_words(*found[name])}", "no layer of that name")


def _words(kind: str, shape: Sequence[int]) -> str:
    return f"a {kind} of shape {sizes(tuple(shape)) or 'none'}"
