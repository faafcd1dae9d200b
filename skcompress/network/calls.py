"""Calls of layers, and of what could stand in for them, without values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_flatten

from ..layers import Slot, kind_of
from ..layers.chain import empty_factors
from ..layers.reparametrized import computed_by, copied
from ..protocols import CostedWeight, Factors, Stage, StandInCall
from .weights import Site


@dataclass
class Call:
    """Arguments of a module without their values: tensors on the meta device.

    times : in how many calls of one forward they were like this
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    times: int = 0


def without_values(value: Any) -> Any:
    """Put a tensor on the meta device, in single precision; anything else stays."""
    if isinstance(value, PackedSequence):  # whose lengths are values that count
        return value._replace(data=without_values(value.data))
    if not isinstance(value, Tensor):
        return value
    # One precision throughout: under autocast inputs and weights need not have the same.
    dtype = torch.float32 if value.is_floating_point() else value.dtype
    return torch.empty(value.shape, dtype=dtype, device="meta")


def description(arguments: Any) -> str:
    """Tell calls apart by all that can change the work that they are."""
    leaves, structure = tree_flatten(arguments)
    words = [f"{x.dtype}{tuple(x.shape)}" if isinstance(x, Tensor) else repr(x) for x in leaves]
    return f"{words} {structure}"


def costed(site: Site, calls: Mapping[str, Sequence[Call]] | None) -> CostedWeight:
    """Describe a weight as costs see it.

    calls : of the layers in one forward, as `look` gives them; None where there are no inputs
    """
    kinds = [kind_of(module) for module in site.modules]
    return CostedWeight(
        site.name,
        site.slot.shape,
        site.slot.size,
        site.slot.read().element_size(),
        None if calls is None else partial(_stand_in_calls, site, calls),
        next((k.saves_no_flops for k in kinds if k and k.saves_no_flops), None),
    )


def _stand_in_calls(
    site: Site, calls: Mapping[str, Sequence[Call]], stages: Sequence[Stage] | None
) -> Iterator[StandInCall]:
    for (name, slot), module in zip(site.users, site.modules, strict=True):
        own = calls.get(name, ())
        if not own:
            continue
        names: tuple[str, ...] = ("",)
        if stages is None and not slot:
            # With what a parametrization computes, which goes with the weight.
            stand_in = _bare(module)
        else:
            stand_in, names = _stand_in(module, slot, stages or _dense_stages(site.slot))
        for call in own:
            yield StandInCall(stand_in, call.args, call.kwargs, call.times, names)


def _dense_stages(slot: Slot) -> tuple[Stage, ...]:
    """Write the weight of a slot as it is, as a chain of one stage."""
    groups, out, *rest = slot.shape
    return (Stage((groups * out, *rest), groups),)


def _bare(module: nn.Module) -> nn.Module:
    """Copy a layer to the meta device, without hooks but those that compute its weight."""
    result = copied(module).eval().to("meta", torch.float32)
    for inner in result.modules():
        for hooks in (inner._forward_hooks, inner._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if computed_by(hook) is None]:
                del hooks[key]
    return result


def _stand_in(
    module: nn.Module, wanted: str, stages: Sequence[Stage]
) -> tuple[nn.Module, tuple[str, ...]]:
    """Build what stands in for a layer, one of whose weights is kept as these stages."""
    kind = kind_of(module)
    assert kind is not None
    chains = {slot.name: _dense_stages(slot) for slot in kind.slots(module)} | {wanted: stages}
    factors = {name: _parameters_of(chain) for name, chain in chains.items()}
    memo: dict[Any, Any] = {id(p): _parameter(p.shape) for p in module.parameters()}
    result = kind.build(module, factors, memo).eval()
    return result, tuple(kind.stages(result, wanted))


def _parameters_of(stages: Sequence[Stage]) -> Factors:
    """Factors without values, as parameters."""
    empty = empty_factors(stages, torch.float32, "meta")
    return empty.holding([_parameter(t.shape) for t in empty.stored])


def _parameter(shape: Sequence[int]) -> nn.Parameter:
    return nn.Parameter(torch.empty(tuple(shape), dtype=torch.float32, device="meta"))
