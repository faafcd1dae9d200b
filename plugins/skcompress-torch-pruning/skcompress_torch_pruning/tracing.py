"""Which channels of a model depend on each other: torch-pruning's graph, as plain records."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import lcm
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch_pruning import ops
from torch_pruning.dependency import Group as TiedGroup

from skcompress.building import (
    Batch,
    Batches,
    Reducer,
    Selection,
    copied,
    observe,
    tensors_in,
)

from .errors import UntraceableError
from .groups import ChannelGroup, Member
from .removing import MIXING, PASSING

# What torch-pruning calls operations that hold no parameters.
_BARE = (
    ops.OPTYPE.CONCAT, ops.OPTYPE.SPLIT, ops.OPTYPE.ELEMENTWISE, ops.OPTYPE.RESHAPE,
    ops.OPTYPE.UNBIND, ops.OPTYPE.EXPAND, ops.OPTYPE.SLICE,
)  # fmt: skip
# Of a single tensor of inputs, how many of the batch are looked at.
_FEW = 4


@dataclass(frozen=True)
class Trace:
    """A dependency graph, with what torch-pruning's importances want to see.

    groups : in the order of the model
    tied : torch-pruning's own record of each group, by its name; of a copy of the model
    """

    groups: list[ChannelGroup]
    tied: dict[str, TiedGroup]


def example(data: Batches) -> Batch:
    """Give a few inputs to look at a model with: of the first batch.

    Inputs without any variation, as people give them for their shape, become noise.
    """
    batch = next(iter(data))
    generator = torch.Generator().manual_seed(0)

    def lively(x: Any) -> Any:
        if not (isinstance(x, Tensor) and x.is_floating_point() and x.numel() > 1):
            return x
        if bool((x != x.flatten()[0]).any()):
            return x
        return torch.randn(x.shape, generator=generator).to(x)

    args = batch.args
    if len(args) == 1 and not batch.kwargs and isinstance(args[0], Tensor) and args[0].dim() > 1:
        args = (args[0][:_FEW],)
    return replace(batch, args=tree_map(lively, args), kwargs=tree_map(lively, batch.kwargs))


def outputs(result: Any) -> list[Tensor]:
    """List the floating tensors in what a model gives."""
    return [x for x in tensors_in(result) if x.is_floating_point()]


def trace(model: nn.Module, data: Batches, selection: Selection) -> Trace:
    """Read the groups of channels off one forward.

    selection : of all layers of the model, whatever the user wants of them
    """
    copy = copied(model)
    for parameter in copy.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    tracing = _Tracing(selection)
    # What is wrong with the model or the data says so before anything is traced.
    observe(copy, [example(data)], tracing, title="trace", gradients=True)
    return tracing.result


class _Tracing(Reducer):
    """Runs a network again under torch-pruning's eyes.

    result : the groups of its layers
    """

    result: Trace

    def __init__(self, selection: Selection):
        self._selection = selection

    def attach(self, network: nn.Module) -> None:  # type: ignore[override]
        self._network = network

    def after(self, batch: Batch, output: Any) -> None:  # type: ignore[override]
        def run(network: nn.Module, _: Any) -> list[Tensor]:
            return _with_gradient(batch, network(*batch.args, **batch.kwargs))

        _with_gradient(batch, output)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                graph = tp.DependencyGraph().build_dependency(
                    self._network, batch, run, verbose=False
                )
                tied = list(graph.get_all_groups())
        except Exception as cause:
            why = f"torch-pruning raised {type(cause).__name__}: {cause}"
            raise UntraceableError(batch.owner, why) from cause
        names = {module: name for name, module in self._network.named_modules()}
        known = _Layers(self._network, self._selection)
        # From the outputs backwards, as the graph has them: the model's own order reads better.
        order = {name: n for n, name in enumerate(names.values())}
        found = {}
        for group in tied:
            record = known.record(group, graph, names)
            found[record.name] = record, group
        ordered = sorted(found, key=order.__getitem__)
        self.result = Trace([found[n][0] for n in ordered], {n: found[n][1] for n in ordered})


def _with_gradient(batch: Batch, result: Any) -> list[Tensor]:
    found = [x for x in outputs(result) if x.grad_fn is not None]
    if not found:
        raise UntraceableError(batch.owner, "no gradient comes back from its outputs")
    return found


class _Layers:
    """What has to be known of layers to tell whether their channels may go."""

    def __init__(self, model: nn.Module, selection: Selection):
        self._usable = {site.users[0][0] for site in selection.sites if site.alone}
        self._reasons = {left.name: left.reason for left in selection.left}
        users = Counter(id(p) for m in model.modules() for p in m._parameters.values())
        self._shared = {
            name
            for name, module in model.named_modules()
            if any(p is not None and users[id(p)] > 1 for p in module._parameters.values())
        }

    def record(
        self, group: TiedGroup, graph: tp.DependencyGraph, names: dict[nn.Module, str]
    ) -> ChannelGroup:
        """Make a plain record of one of torch-pruning's groups."""
        n = len(group[0].idxs)
        members: list[Member] = []
        reasons: list[str] = []
        parts = [1]
        for number, item in enumerate(group):
            node = item.dep.target
            layer = names.get(node.module, "")
            outputs = graph.is_out_channel_pruning_fn(item.dep.handler)
            reason = self._reason(node, layer, outputs)
            if reason is None and node.type in _BARE:
                continue
            size = None if reason else _size(node.module, outputs)
            places = _places(group[number].root_idxs, item.idxs, n, size)
            if reason is None and places is None:
                reason = f"torch-pruning does not tell which of them are channels of {layer!r}"
            if reason is not None:
                reasons.append(reason)
            if isinstance(node.module, nn.Module) and node.module in names:
                mixes = node.type in MIXING
                members.append(Member(layer, outputs, mixes, places or ((),) * n))
            if node.type == ops.OPTYPE.CONV:
                parts.append(node.module.groups)
        if not reasons and not any(m.mixes and not m.outputs for m in members):
            reasons.append("outputs of the model: no layer reads these channels")
        together = lcm(*parts)
        if n % together:
            reasons.append(f"{n} channels cannot be divided into {together} groups alike")
            together = 1
        # The first in the model's order that gives all of them, for people to find it.
        whole = {m.layer for m in members if m.mixes and m.outputs and m.places == strided(n, 1)}
        root = names[group[0].dep.target.module]
        return ChannelGroup(
            next((name for name in names.values() if name in whole), root),
            tuple(members),
            strided(n, together),
            reason=reasons[0] if reasons else None,
        )

    def _reason(self, node: Any, layer: str, outputs: bool) -> str | None:
        """Say why channels cannot be taken from an operation; None if they can."""
        if node.type == ops.OPTYPE.OUTPUT:
            return "outputs of the model"
        if node.type in _BARE:
            return None
        if node.type == ops.OPTYPE.PARAMETER:
            return "combined with a parameter that the model's own forward uses"
        kind = type(node.module).__name__
        if layer in self._shared:
            return f"{kind} {layer!r} shares its parameters"
        if node.type in MIXING:
            return None if layer in self._usable else self._refusal(layer, kind)
        if node.type in PASSING:
            weight = getattr(node.module, "weight", None)
            plain = weight is None or "weight" in node.module._parameters
            return None if plain else f"the weight of {kind} {layer!r} is computed"
        if isinstance(node.module, nn.LayerNorm | nn.GroupNorm):
            return f"{kind} {layer!r} normalises over channels: all change where one goes"
        return f"{kind} {layer!r} cannot lose single channels"

    def _refusal(self, layer: str, kind: str) -> str:
        inside = (n for n in self._reasons if layer == n or layer.startswith(f"{n}."))
        reason = next((self._reasons[n] for n in inside), "its weight is computed")
        return f"{kind} {layer!r}: {reason}"


def _size(module: nn.Module, outputs: bool) -> int | None:
    remover = tp.DependencyGraph().get_pruner_of_module(module)
    return remover.get_out_channels(module) if outputs else remover.get_in_channels(module)  # type: ignore[no-any-return]


def _places(
    roots: Iterable[int | None], channels: Iterable[int], n: int, size: int | None
) -> tuple[tuple[int, ...], ...] | None:
    """Sort a layer's channels by the channel of the group; None where that is not known."""
    places: list[list[int]] = [[] for _ in range(n)]
    for root, channel in zip(roots, channels, strict=True):
        if root is None or not 0 <= root < n or (size is not None and not 0 <= channel < size):
            return None
        places[root].append(channel)
    return tuple(tuple(sorted(found)) for found in places)


def strided(n: int, together: int) -> tuple[tuple[int, ...], ...]:
    """Channels at the same place of each of `together` equal parts."""
    width = n // together
    return tuple(tuple(range(place, n, width)) for place in range(width))
