"""How much the outputs change with each channel: gates of size 1, differentiated sample by sample.

Every layer that reads the channels of a group gets them times a gate, one number for each sample
and unit. The derivative of a goal by the gate is, to first order, what the goal loses when the
unit goes for this sample: the sum over positions of activation times gradient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skcompress.network.batches import Batch, Batches, device_of, n_samples
from skcompress.network.observing import noting
from skcompress.randomness import same_randomness
from skcompress.statistics.backward import differentiable

from .groups import ChannelGroup, Member

Goal = Callable[[Any, Batch, int], Tensor]
Visit = Callable[[Batch, dict[str, Tensor]], None]


def gate_gradients(
    observed: nn.Module, groups: Sequence[ChannelGroup], data: Batches, goal: Goal, visit: Visit
) -> None:
    """Differentiate a goal by the gates of all groups, batch by batch.

    observed : a copy in eval mode that may be changed
    goal : gives from what the model gives, the batch and its number a scalar, a sum over samples
    visit : is given the batch and, by the name of the group, derivatives (samples, units)
    """
    readers: dict[str, list[tuple[ChannelGroup, Member]]] = defaultdict(list)
    for group in groups:
        for member in group.readers:
            readers[member.layer].append((group, member))
    gates: dict[str, list[Tensor]] = defaultdict(list)
    under_way: set[str] = set()

    def gate(layer: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            # Rules of relevance call the layer again with what has passed the gate.
            if layer in under_way:
                return None
            under_way.add(layer)
            x = args[0] if args else kwargs["input"]
            axis = -1 if isinstance(module, nn.Linear) else 1
            factors = torch.ones(len(x), x.shape[axis], dtype=x.dtype, device=x.device)
            factors.requires_grad_(True)
            gates[layer].append(factors)
            shape = [1] * x.dim()
            shape[0], shape[axis] = factors.shape
            return (x * factors.reshape(shape), *args[1:]), {}

        return hook

    def done(layer: str) -> Callable[..., None]:
        return lambda *_: under_way.discard(layer)

    hooks = [
        observed.get_submodule(name).register_forward_pre_hook(gate(name), with_kwargs=True)
        for name in readers
    ]
    hooks += [observed.get_submodule(name).register_forward_hook(done(name)) for name in readers]
    try:
        with differentiable(), same_randomness(device_of(observed)):
            for number, batch in enumerate(data):
                gates.clear()
                under_way.clear()
                with noting("differentiated", number, batch, data.owner):
                    total = goal(observed(*batch.args, **batch.kwargs), batch, number)
                    flat = [(name, factors) for name, found in gates.items() for factors in found]
                    slopes = torch.autograd.grad(total, [f for _, f in flat], allow_unused=True)
                n = n_samples(batch)
                by_layer: dict[str, Tensor] = {}
                for (name, _), slope in zip(flat, slopes, strict=True):
                    if slope is not None:
                        part = _by_sample(slope.float(), n)
                        by_layer[name] = by_layer[name] + part if name in by_layer else part
                visit(batch, _by_unit(groups, by_layer))
    finally:
        for hook in hooks:
            hook.remove()


def _by_sample(slope: Tensor, n: int) -> Tensor:
    """Add up rows (rows, channels) that a forward made of the same sample."""
    return slope.reshape(n, -1, slope.shape[1]).sum(1) if len(slope) % n == 0 else slope


def _by_unit(groups: Sequence[ChannelGroup], by_layer: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for group in groups:
        total: Tensor | None = None
        for member in group.readers:
            slope = by_layer.get(member.layer)
            if slope is None:
                continue
            units = [group.places(member, unit) for unit in range(len(group.units))]
            owner = torch.tensor([u for u, places in enumerate(units) for _ in places])
            index = torch.tensor([place for places in units for place in places])
            part = torch.zeros(len(slope), len(units), device=slope.device)
            part.index_add_(1, owner.to(slope.device), slope[:, index.to(slope.device)])
            total = part if total is None else total + part
        if total is not None:
            found[group.name] = total
    return found
