"""Layers of a checkpoint with their values, as few at a time as can be.

A group is a set of layers that have to be looked at together: those that share a weight.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..network.weights import Left, Selection, Site, flat_shape
from .streaming_architecture import Architecture

OTHER_FORM = "the checkpoint stores it in another form, which stays as it is"


@dataclass(frozen=True)
class Group:
    """Layers that share weights.

    modules : their names, in the order of the model; sites : the weights to work on
    """

    modules: tuple[str, ...]
    sites: tuple[Site, ...]


def groups(sites: Sequence[Site]) -> list[Group]:
    """Put together what shares a layer or a weight; in the order of the model."""
    number: dict[str, int] = {}
    members: dict[int, list[Site]] = {}
    for i, site in enumerate(sites):
        names = [name for name, _ in site.users]
        joined = {number[name] for name in names if name in number}
        members[i] = [s for n in sorted(joined) for s in members.pop(n)] + [site]
        for name in [*names, *(n for s in members[i] for n, _ in s.users)]:
            number[name] = i
    return [
        Group(tuple(dict.fromkeys(name for s in found for name, _ in s.users)), tuple(found))
        for found in members.values()
    ]


def leave_absent(selection: Selection, architecture: Architecture) -> Selection:
    """Leave alone what the checkpoint has no values for under the network's names."""
    present, left = [], list(selection.left)
    for site in selection.sites:
        if all(architecture.has(module) for module in site.modules):
            present.append(site)
            continue
        shape = flat_shape(site.slot.shape)
        left.append(Left(site.name, site.kind, shape, site.slot.size, OTHER_FORM))
    return Selection(present, left, selection.order)


def with_values(architecture: Architecture, modules: Iterable[str]) -> nn.Module:
    """Give a model of these layers alone, under their names, with their values.

    Numbers of 16 bits come as float32, as decompositions take them: a copy less than making
    both. They are of 16 bits again when they are written.
    """
    memo: dict[int, Any] = {}
    root = nn.Module()
    for name in modules:
        module = architecture.model.get_submodule(name)
        for tensor in (*module.parameters(), *module.buffers()):
            stored = architecture.values.get(id(tensor))
            if stored is None or id(tensor) in memo:
                continue
            dtype = tensor.dtype
            if dtype.is_floating_point:
                dtype = torch.promote_types(dtype, torch.float32)
            values = stored.read(dtype)
            memo[id(tensor)] = (
                nn.Parameter(values, tensor.requires_grad)
                if isinstance(tensor, nn.Parameter)
                else values
            )
        layer = copy.deepcopy(module, memo)
        if not name:
            return layer
        _insert(root, name, layer)
    return root


def _insert(root: nn.Module, name: str, layer: nn.Module) -> None:
    *path, own = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root._modules[part]  # type: ignore[assignment]
    root.add_module(own, layer)
