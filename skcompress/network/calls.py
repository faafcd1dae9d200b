"""FLOPs of one forward: of a network on a batch, and of chains that could stand in for layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from ..errors import MetaWeightError
from ..layers import Slot, kind_of
from ..layers.chain import empty_factors
from ..metrics import flop_counter
from ..protocols import Factors, Stage
from .batches import Batches, device_of
from .observing import forward, observer, same_randomness
from .weights import Site


@dataclass
class Call:
    """Arguments of a module without their values: tensors on the meta device.

    times : in how many calls of one forward they were like this
    flops : of all these calls, with all that the module computes in them
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    times: int = 0
    flops: int = 0


def count_calls(
    model: nn.Module, sites: Sequence[Site], data: Batches
) -> tuple[int, dict[str, list[Call]]]:
    """Count the FLOPs of the first batch, and the calls of each layer of the sites in it.

    The model runs in eval mode and without gradients, as a copy that shares its
    parameters. Layers that the batch does not reach have no calls.
    """
    for site in sites:
        if site.slot.read().is_meta:
            raise MetaWeightError(site.name)
    copy = observer(model)
    calls: dict[str, dict[str, Call]] = defaultdict(dict)
    with same_randomness(device_of(copy)), torch.no_grad():
        batch = next(iter(data))
        with flop_counter() as counter:
            for name in {name: None for site in sites for name, _ in site.users}:
                _watch(copy.get_submodule(name), calls[name], counter.get_total_flops)
            forward(copy, 0, batch, data.owner)
    return counter.get_total_flops(), {name: list(found.values()) for name, found in calls.items()}


def _watch(module: nn.Module, calls: dict[str, Call], flops: Callable[[], int]) -> None:
    """Note every call of a module by its description; `flops` reads the counter."""
    begun: list[int] = []

    def before(module: nn.Module, args: Any) -> None:
        begun.append(flops())

    # Arguments after the forward, so that what a layer refuses gets the layer's own words.
    def after(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        bare = tree_map(_without_values, (args, kwargs))
        call = calls.setdefault(_description(bare), Call(*bare))
        call.times += 1
        call.flops += flops() - begun.pop()

    # Hooks of the user run outside of these two: the stand-in will have them as well.
    module.register_forward_pre_hook(before)
    module.register_forward_hook(after, prepend=True, with_kwargs=True)


def _without_values(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    # One precision throughout: under autocast inputs and weights need not have the same.
    dtype = torch.float32 if value.is_floating_point() else value.dtype
    return torch.empty(value.shape, dtype=dtype, device="meta")


def _description(arguments: Any) -> str:
    """Tell calls apart by all that can change the work that they are."""
    leaves, structure = tree_flatten(arguments)
    words = [f"{x.dtype}{tuple(x.shape)}" if isinstance(x, Tensor) else repr(x) for x in leaves]
    return f"{words} {structure}"


def dense_stages(slot: Slot) -> tuple[Stage, ...]:
    """Write the weight of a slot as it is, as a chain of one stage."""
    groups, out, *rest = slot.shape
    return (Stage((groups * out, *rest), groups),)


def count_stages(
    module: nn.Module, calls: Sequence[Call], chains: Mapping[str, Sequence[Stage]]
) -> dict[str, list[int]]:
    """Count the FLOPs of each stage where chains stand in for the weights of a module.

    calls : of the module in one forward
    chains : by slot name, with the groups of the layer; slots that are left out stay dense

    The stand-in itself is run under torch's counter, on the meta device, where nothing is
    computed. A stage multiplies each of its numbers at as many positions whatever the rank
    is: these depend on the kernels of the stages, and on which have pivots, only.
    """
    kind = kind_of(module)
    assert kind is not None
    shapes = {slot.name: chains.get(slot.name, dense_stages(slot)) for slot in kind.slots(module)}
    factors = {name: _parameters_of(stages) for name, stages in shapes.items()}
    memo: dict[Any, Any] = {id(p): _parameter(p.shape) for p in module.parameters()}
    stand_in = kind.build(module, factors, memo).eval()
    names = {slot: kind.stages(stand_in, slot) for slot in chains}
    flops = {slot: [0] * len(stages) for slot, stages in names.items()}
    for call in calls:
        with flop_counter() as counter:
            stand_in(*call.args, **call.kwargs)
        counts = counter.get_flop_counts()
        for slot, stages in names.items():
            for j, stage in enumerate(stages):
                own = counts.get(f"{type(stand_in).__name__}.{stage}", {})
                flops[slot][j] += call.times * sum(own.values())
    return flops


def _parameters_of(stages: Sequence[Stage]) -> Factors:
    """Factors without values, as parameters."""
    empty = empty_factors(stages, torch.float32, "meta")
    return empty.holding([_parameter(t.shape) for t in empty.stored])


def _parameter(shape: Sequence[int]) -> nn.Parameter:
    return nn.Parameter(torch.empty(tuple(shape), dtype=torch.float32, device="meta"))
