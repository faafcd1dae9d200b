"""Whether channels may really go: tried out, not believed.

A graph of operations can be wrong about what happens to channels between layers: a forward may
pad, permute or reshape them, or hold their number in an attribute. So one law is tested on a few
inputs before any channel goes: the model without the channels gives what the model gives that
does not read them. Everything else relies on it: what channels mean to the outputs is what the
layers that read them make of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from skcompress.building import Batch, Reducer, copied, matches, observe

from .groups import ChannelGroup, Resize, removal
from .removing import remove_, unread_
from .tracing import outputs

# In float64; a forward that turns to float32 somewhere passes, a wrong order of channels does not.
_CLOSE = 1e-5
# What models call the number of attention heads, and the number of channels of all of them.
_HEADS = ("num_heads", "n_heads", "n_head", "num_attention_heads", "nhead", "heads")
_WIDTHS = ("all_head_size", "inner_dim", "inner_size")

Chosen = Sequence[tuple[ChannelGroup, Sequence[int]]]


class Trial:
    """A model to take channels from, on a few inputs.

    model : stays as it is; batch : of its inputs
    """

    def __init__(self, model: nn.Module, batch: Batch):
        self._model = copied(model).double()
        args, kwargs = tree_map(_double, (batch.args, batch.kwargs))
        self._batch = replace(batch, args=args, kwargs=kwargs)

    def fault(self, chosen: Chosen) -> str | None:
        """Say what goes wrong without these units; None for nothing."""
        gone = removal(chosen)
        goal = self._outputs(unread_(copied(self._model), gone))
        resized = resizes(chosen)
        try:
            found = self._outputs(remove_(copied(self._model), gone, resized))
        except Exception as error:
            words = str(error).strip().splitlines() or [""]
            return f"the model does not run with fewer: {type(error).__name__}: {words[0]}"
        if [x.shape for x in found] != [x.shape for x in goal]:
            return "outputs of the model"
        for x, y in zip(found, goal, strict=True):
            apart = float((x - y).abs().max()) if x.numel() else 0.0
            if not apart <= _CLOSE * float(y.abs().max()):
                return "the forward uses them in ways that the graph does not show"
        return None

    def _outputs(self, network: nn.Module) -> list[Tensor]:
        given = _Given()
        observe(network, [self._batch], given)
        return given.outputs


class _Given(Reducer):
    """Keeps what a network gives for the last batch."""

    outputs: list[Tensor]

    def after(self, batch: Batch, *results: Any) -> None:
        self.outputs = outputs(results)


def _double(value: object) -> object:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.double()
    return value


def resizes(chosen: Chosen) -> list[tuple[Resize, int]]:
    """Numbers that modules hold of these groups, with how many units stay."""
    return [(r, len(group.units) - len(gone)) for group, gone in chosen for r in group.resizes]


def verified(
    trial: Trial,
    model: nn.Module,
    groups: Iterable[ChannelGroup],
    num_heads: Mapping[str, int],
) -> list[ChannelGroup]:
    """Give the groups as they hold, and with a reason those that do not.

    num_heads : number of attention heads by patterns of the names of the attention modules, for
        those that do not have it as an attribute of a usual name
    """
    groups = list(groups)
    open_ = [group for group in groups if group.reason is None]
    if open_ and not num_heads and trial.fault([(g, _some(g)) for g in open_]) is None:
        return groups
    return [g if g.reason is not None else _verified(trial, model, g, num_heads) for g in groups]


def _verified(
    trial: Trial, model: nn.Module, group: ChannelGroup, num_heads: Mapping[str, int]
) -> ChannelGroup:
    first = None
    for variant in (group, *_by_heads(model, group, num_heads)):
        fault = trial.fault([(variant, _some(variant))])
        if fault is None:
            return variant
        first = first or fault
    return replace(group, reason=first)


def _some(group: ChannelGroup) -> list[int]:
    """Draw half of the units, the same ones every time."""
    generator = torch.Generator().manual_seed(zlib.crc32(group.name.encode()))
    n = len(group.units)
    drawn: list[int] = torch.randperm(n, generator=generator)[: n // 2].tolist()
    return sorted(drawn)


def _by_heads(
    model: nn.Module, group: ChannelGroup, num_heads: Mapping[str, int]
) -> Iterator[ChannelGroup]:
    """Take the channels for those of attention heads, of which whole ones may go."""
    n = sum(map(len, group.units))
    around: dict[str, nn.Module] = {}
    for layer in group.givers:
        name = layer.rpartition(".")[0]
        around[name] = model.get_submodule(name)
    for name, module in around.items():
        given = [h for pattern, h in num_heads.items() if matches(pattern, [name])]
        held = [v for a in _HEADS if isinstance(v := getattr(module, a, None), int)]
        for heads in dict.fromkeys((*given, *held)):
            if heads > 1 and n % heads == 0:
                width = n // heads
                units = tuple(tuple(range(i, i + width)) for i in range(0, n, width))
                # Where the user says so, the number is looked for under any name.
                attributes = [a for a, v in vars(module).items() if v == heads and heads in given]
                for resized in ((), _held(around, heads, n, (*_HEADS, *attributes))):
                    yield replace(group, units=units, resizes=resized)


def _held(
    modules: Mapping[str, nn.Module], heads: int, n: int, names: Sequence[str]
) -> tuple[Resize, ...]:
    """Attributes that hold the number of heads, of these names, or of channels of all heads."""
    known = ((dict.fromkeys(names), heads, 1), (_WIDTHS, n, n // heads))
    return tuple(
        Resize(name, attribute, per_unit)
        for name, module in modules.items()
        for attributes, value, per_unit in known
        for attribute in attributes
        if getattr(module, attribute, None) == value
    )
