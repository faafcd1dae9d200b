"""From what was chosen to a plan in which every layer has its row."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from skcompress.building import Patterns, as_patterns, copied, display_name, matches, select

from .groups import ChannelGroup, Removal, Resize
from .plan import ChannelPlan, GroupPlan, LayerSides, described
from .removing import mixes, remove_

KEPT = "keeping all of them is the best use of the budget"


def excluded(groups: Iterable[ChannelGroup], reasons: Mapping[str, str]) -> list[ChannelGroup]:
    """Give groups a reason to stay, by their names, where they have none yet."""
    return [
        replace(g, reason=reasons[g.name]) if g.reason is None and g.name in reasons else g
        for g in groups
    ]


def unwanted(
    model: nn.Module, groups: Iterable[ChannelGroup], layers: Patterns, exclude: Patterns
) -> dict[str, str]:
    """Say of which groups the user wants nothing to go, by their names.

    layers, exclude : patterns of what may lose outputs (None: everything), and of what may not
    """
    everything = _selected(model, None, ())
    excluded = everything - _selected(model, None, exclude)
    others = everything - _selected(model, layers, ())
    reasons = {}
    for group in groups:
        for name in group.givers:
            module = model.get_submodule(name)
            # A normalisation, for one, is nothing that `select` knows.
            hit = name not in everything and any(
                matches(p, [name], [module]) for p in as_patterns(exclude)
            )
            if hit or name in excluded:
                reasons[group.name] = f"{name} is in exclude"
            elif mixes(module) and name in others:
                reasons.setdefault(group.name, f"{name} is not among layers")
    return reasons


def _selected(model: nn.Module, layers: Patterns, exclude: Patterns) -> set[str]:
    sites = select(model, layers, exclude).sites
    return {name for site in sites for name, _ in site.users}


def make_plan(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    chosen: Mapping[str, Collection[int]],
    gone: Removal,
    resized: Sequence[tuple[Resize, int]],
) -> ChannelPlan:
    """Write down what happens to each group, and to layers that give no channels of any.

    chosen : units that go, by group
    """
    small = remove_(_without_values(model), gone, resized)
    rows: dict[str, GroupPlan] = {}
    owned: set[str] = set()
    for group in groups:
        givers = [name for name in group.givers if name not in owned]
        owned.update(givers)
        units = set(chosen.get(group.name, ()))
        channels = [c for n, u in enumerate(group.units) for c in u if n not in units]
        reason = group.reason if units or group.reason else KEPT
        layers = [n for n in givers if mixes(model.get_submodule(n))]
        rows[group.name] = GroupPlan(
            name=group.name,
            kind=type(model.get_submodule(group.name)).__name__,
            layers=tuple(layers),
            passing=tuple(n for n in givers if n not in layers),
            channels=sum(map(len, group.units)),
            kept=tuple(sorted(channels)),
            before=_stored(model, givers),
            after=_stored(small, givers),
            reason=reason,
        )
    ordered = []
    for name, module in model.named_modules():
        if name in rows:
            ordered.append(rows[name])
        elif name not in owned and _stored(model, [name]):
            ordered.append(
                GroupPlan(
                    display_name(name), type(module).__name__, (name,), (), 0, (),
                    _stored(model, [name]), _stored(small, [name]),
                    "gives no channels that the graph knows",
                )
            )  # fmt: skip
    layers_of = {}
    for name, (outputs, inputs) in gone.items():
        layers_of[name] = LayerSides(
            *described(model.get_submodule(name)), tuple(outputs), tuple(inputs)
        )
    held = tuple(
        (r.module, r.attribute, getattr(model.get_submodule(r.module), r.attribute), r.per_unit * n)
        for r, n in resized
    )
    return ChannelPlan(tuple(ordered), layers_of, held)


def _without_values(model: nn.Module) -> nn.Module:
    memo = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        for p in model.parameters()
        if not isinstance(p, UninitializedParameter)
    }
    return copied(model, memo)


def _stored(model: nn.Module, names: Iterable[str]) -> int:
    return sum(
        p.numel()
        for name in names
        for p in model.get_submodule(name).parameters(recurse=False)
        if not isinstance(p, UninitializedParameter)
    )
