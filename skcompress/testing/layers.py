"""Laws of kinds of layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import load, save
from ..compressors.pruning.pruner import Pruner
from ..compressors.svd import SVDCompressor
from ..decompositions.svd import SVD
from ..layers import densify, kind_of, substitute
from ..layers.chain import merge_groups
from ..layers.inputs import arguments
from ..layers.kinds import layer_kinds
from ..layers.writing import write_weights
from ..metrics import count_parameters
from ..network.weights import select
from ..protocols import Factorized, Factors, LayerKind
from ..protocols.product import multiply_out
from .untouched import check_untouched, snapshot

_RANK = 1


def check_layer_kind(
    kind: LayerKind | type[LayerKind], make: Callable[[], nn.Module], *args: Any
) -> None:
    """Check a registered kind of layer on modules of its kind.

    make : gives a new module, in float64 and eval mode, whose weights have more than one row
        and one column; called several times
    args : of its forward

    Laws: the kind is registered under the name that its stand-ins give; weights are read as
    (groups, out, in, *kernel), with a gradient; a module and the stand-in for its factors are
    the same function, as is the layer made of them again; a stand-in knows its factors, is built
    without values, keeps mode, precision and frozen weights, trains every parameter, and is
    copied, filled by its state, saved and loaded; a shared module, and a shared weight where that
    is possible, stay shared; compressors and pruners, with and without data, leave the module as
    it was.
    """
    kind = kind() if isinstance(kind, type) else kind
    name = type(kind).__name__
    module, factors = _of_low_rank(kind, make())
    assert type(kind_of(module)) is type(kind), f"{name}: another kind takes the module"
    expected = module(*args)
    before = snapshot(module)
    small: Any = substitute(module, {"": factors})
    check_untouched(name, module, before)
    is_marked = isinstance(small, Factorized)
    assert is_marked, f"{name}: what it builds is not Factorized"
    registered = layer_kinds().get(getattr(small, "kind", ""))
    assert type(registered) is type(kind), f"{name}: stand-ins have another kind, or none"
    _same(f"{name}: the stand-in", small(*args), expected)
    given = arguments(module, args, {})
    _same(f"{name}: the stand-in, given keywords", small(**given), expected)
    assert count_parameters(small) < count_parameters(module), f"{name}: keeps the weight"
    _knows_its_factors(name, small, factors)
    _same(f"{name}: a copy", copy.deepcopy(small)(*args), expected)
    dense = densify(small)
    assert type(dense) is type(module), f"{name}: to_dense gives another class"
    _same(f"{name}: the dense layer", dense(*args), expected)
    _is_carried_over(name, kind, make, factors)
    _loads_states(name, small, module, factors, args)
    _is_saved(name, small, make, args)
    _trains(name, small, args)
    _stays_shared(name, kind, module, factors, make)
    _goes_through_compressors(name, make, args)


def _of_low_rank(kind: LayerKind, module: nn.Module) -> tuple[nn.Module, dict[str, Factors]]:
    """Give every weight rank one, and the factors that it then has."""
    assert kind.matches(module), f"{type(kind).__name__} does not match the module"
    reason = kind.refusal(module)
    assert reason is None, f"{type(kind).__name__} refuses the module: {reason}"
    factors, values = {}, {}
    for slot in kind.slots(module):
        weight = slot.read()
        assert weight.dim() >= 3, f"slot {slot.name!r} is no (groups, out, in, *kernel)"
        assert weight.shape[0] == slot.groups, f"slot {slot.name!r} has other groups than it says"
        assert weight.requires_grad == slot.requires_grad, f"slot {slot.name!r} has no gradient"
        parts = [SVD().factorize(w).factors(w, _RANK) for w in weight.detach()]
        merged = merge_groups(parts)
        parameters = [nn.Parameter(t.contiguous()) for t in merged.stored]
        factors[slot.name] = merged.holding(parameters)
        values[slot.name] = torch.stack([multiply_out(part) for part in parts])
    write_weights(kind, module, values)
    return module, factors


def _tensors(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    parts = result.values() if isinstance(result, dict) else result
    return [t for part in parts if part is not None for t in _tensors(part)]


def _same(what: str, found: Any, expected: Any) -> None:
    pairs = zip(_tensors(found), _tensors(expected), strict=True)
    for ours, theirs in pairs:
        assert ours.shape == theirs.shape, f"{what} gives another shape"
        error = float((ours - theirs).detach().norm() / theirs.detach().norm().clamp(min=1e-30))
        assert error < 1e-9, f"{what} differs by {error:.1e}"


def _knows_its_factors(name: str, small: Any, factors: dict[str, Factors]) -> None:
    found = small.factors()
    assert found.keys() == factors.keys(), f"{name}: factors() names other slots"
    for slot, expected in factors.items():
        assert found[slot].stages == expected.stages, f"{name}: factors() of {slot!r}: shapes"
        for ours, theirs in zip(found[slot].stored, expected.stored, strict=True):
            assert torch.equal(ours, theirs), f"{name}: factors() of {slot!r}: other numbers"


def _is_carried_over(
    name: str, kind: LayerKind, make: Callable[[], nn.Module], factors: dict[str, Factors]
) -> None:
    module = make().half().train()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    frozen = {
        slot: f.holding([nn.Parameter(t.detach().half(), False) for t in f.stored])
        for slot, f in factors.items()
    }
    small = substitute(module, {"": frozen})
    assert small.training, f"{name}: the stand-in does not keep the mode"
    assert {p.dtype for p in small.parameters()} == {torch.half}, f"{name}: another precision"
    assert not any(p.requires_grad for p in small.parameters()), f"{name}: thaws weights"


def _loads_states(
    name: str, small: nn.Module, module: nn.Module, factors: dict[str, Factors], args: Any
) -> None:
    empty = {
        slot: f.holding([nn.Parameter(t.detach().to("meta")) for t in f.stored])
        for slot, f in factors.items()
    }
    other = substitute(copy.deepcopy(module).to("meta"), {"": empty})
    shapes = {key: value.shape for key, value in small.state_dict().items()}
    found = {key: value.shape for key, value in other.state_dict().items()}
    assert found == shapes, f"{name}: on the meta device a stand-in has another state"
    other.to_empty(device="cpu").load_state_dict(small.state_dict())
    _same(f"{name}: a stand-in with the loaded state", other.eval()(*args), small(*args))


def _is_saved(name: str, small: nn.Module, make: Callable[[], nn.Module], args: Any) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "saved.safetensors"
        save(small, path)
        again = load(path, make)
    for ours, theirs in zip(_tensors(again(*args)), _tensors(small(*args)), strict=True):
        assert torch.equal(ours, theirs), f"{name}: loaded again it gives something else"


def _trains(name: str, small: nn.Module, args: Any) -> None:
    torch.stack([t.square().sum() for t in _tensors(small(*args))]).sum().backward()
    for key, parameter in small.named_parameters():
        assert parameter.grad is not None, f"{name}: no gradient reaches {key}"


def _stays_shared(
    name: str,
    kind: LayerKind,
    module: nn.Module,
    factors: dict[str, Factors],
    make: Callable[[], nn.Module],
) -> None:
    small: Any = substitute(nn.ModuleList([module, module]), {"0": factors})
    assert small[0] is small[1], f"{name}: a module in two places becomes two"
    other = make()
    for slot in kind.slots(module):
        if not slot.tieable:
            continue
        key = next(n for n, p in module.named_parameters() if p is slot.parameters[0])
        setattr(other, key, slot.parameters[0])
    tied: Any = nn.ModuleList([module, other])
    sites = select(tied).sites
    for site in sites:
        assert not site.slot.tieable or len(site.users) == 2, f"{name}: a tied weight is two"
    result: Any = SVDCompressor(rank=_RANK).fit_transform(tied)
    for slot in kind.slots(module):
        if slot.tieable:
            first, second = (part.factors()[slot.name].stored for part in result)
            assert all(a is b for a, b in zip(first, second, strict=True)), f"{name}: unties"


def _goes_through_compressors(name: str, make: Callable[[], nn.Module], args: Any) -> None:
    module = make()
    before = snapshot(module)
    batch = {key: value for key, value in arguments(module, args, {}).items() if value is not None}
    for compressor in (SVDCompressor(rank=_RANK), Pruner("magnitude", sparsity=0.5)):
        for data in (None, [batch]):
            small = compressor.fit_transform(module, data)
            shapes = [t.shape for t in _tensors(small(*args))]
            assert shapes == [t.shape for t in _tensors(module(*args))], f"{name}: other shapes"
            check_untouched(name, module, before)
