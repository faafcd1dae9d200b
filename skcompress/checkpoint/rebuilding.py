"""The structure of a saved model, put into the model to load into, still without numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ArchitectureError, CheckpointFileError
from ..layers import Slot, replace_modules
from ..layers.chain import empty_factors
from ..layers.kinds import layer_kinds
from ..layers.narrowed import note_number, note_shapes
from ..layers.reparametrized import make_plain
from ..protocols import Factors, Memo
from ..protocols.product import multiply_out
from .contents import named_tensors
from .reading import Description, SavedModel
from .structure import noted, shape_from, stages_from

# Each group of a factor is taken apart while its shape is checked.
_MOST_GROUPS = 1 << 16


def rebuilt(model: nn.Module, saved: SavedModel) -> nn.Module:
    """Give `model`, which is changed, with the structure of the saved one.

    Raises
    ------
    ArchitectureError : `model` is of another architecture; the first difference
    CheckpointFileError : the structure contradicts itself
    """
    result = _restructured(model, saved, lambda name: True)
    with saved.blamed():
        _same_tensors(result, saved)
    return result


def restructured(model: nn.Module, saved: Description) -> nn.Module:
    """As `rebuilt`, of a model that has layers and tensors of which nothing is said."""
    return _restructured(model, saved, saved.structure["layers"].__contains__)


def _restructured(
    model: nn.Module, saved: Description, is_compared: Callable[[str], bool]
) -> nn.Module:
    stand_ins, layers = saved.structure["stand_ins"], saved.structure["layers"]
    inside: set[nn.Module] = set()
    with saved.blamed():
        for name, module in model.named_modules():
            if module in inside:
                continue
            notes = layers.get(name, {})
            if name in stand_ins:
                inside.update(module.modules())
            elif _is_folded(module, notes):
                continue
            elif is_compared(name):
                _compare(name, module, notes)
            _narrow(name, module, notes)
        known = {name for name, _ in model.named_modules()}
        for name, notes in {**stand_ins, **layers}.items():
            if name not in known:
                what = notes.get("kind") or notes.get("class") or "a module"
                raise ArchitectureError(name, str(what)[:80], "absent")

    def build(name: str, module: nn.Module, memo: Memo) -> nn.Module | None:
        if name not in stand_ins:
            return nn.Identity() if _is_folded(module, layers.get(name, {})) else None
        with saved.blamed(f"layer {name!r}"):
            return _stand_in(saved, name, module, stand_ins[name], memo)

    result = replace_modules(model, build)
    with saved.blamed():
        _add_biases(model, result, saved)
        _tie(result, saved.structure["ties"])
    return result


def _is_folded(module: nn.Module, notes: Mapping[str, Any]) -> bool:
    """Whether a batch normalisation has become part of the layer before it."""
    return isinstance(module, _BatchNorm) and notes.get("class") == "Identity"


def _add_biases(model: nn.Module, result: nn.Module, saved: Description) -> None:
    """Give layers without bias the one that a folded normalisation has left them, in place."""
    layers = saved.structure["layers"]
    folded = [
        module.num_features
        for name, module in model.named_modules()
        if _is_folded(module, layers.get(name, {}))
    ]
    for name, module in result.named_modules():
        key = f"{name}.bias".lstrip(".")
        if module._parameters.get("bias", 0) is None and key in saved.shapes:
            (width,) = saved.shapes[key]
            if width not in folded:
                raise ArchitectureError(name, "with a bias", "without one")
            folded.remove(width)
            module.bias = nn.Parameter(torch.empty(width, device="meta"))


def _type(module: nn.Module) -> str:
    return type(module).__name__


def _compare(name: str, module: nn.Module, notes: Mapping[str, Any]) -> None:
    """Compare what a layer is, make it what the file has where that is known how."""
    ours = noted(module)
    of_file, of_model = notes.get("class"), ours.get("class")
    if of_file != of_model:
        raise ArchitectureError(name, str(of_file or "absent")[:80], of_model or _type(module))
    theirs = notes.get("settings", {})
    for key, value in ours.get("settings", {}).items():
        if key not in theirs or theirs[key] == value:
            continue
        if "wide" not in notes:
            raise ArchitectureError(
                name, f"{of_file} with {key}={theirs[key]!r}", f"{of_model} with {key}={value!r}"
            )
    computed, wanted = ours.get("computed", []), notes.get("computed", [])
    if computed and not wanted:
        make_plain(module)
    elif computed != wanted:
        raise ArchitectureError(
            name, f"computed: {', '.join(wanted)}", f"computed: {', '.join(computed) or 'nothing'}"
        )


def _narrow(name: str, module: nn.Module, notes: Mapping[str, Any]) -> None:
    """Take from a layer as many channels as went before it was saved, and note it again."""
    for attribute, (before, after) in notes.get("numbers", {}).items():
        found = getattr(module, attribute, None)
        if found != before or type(found) is not int or type(after) is not int:
            raise ArchitectureError(name, f"{attribute}={before!r}", f"{attribute}={found!r}")
        note_number(module, attribute)
        setattr(module, attribute, after)
    if "wide" not in notes:
        return
    note_shapes(module)
    for key, (before, after) in notes["wide"].items():
        wide, narrow = shape_from(before), shape_from(after)
        tensor = {**module._parameters, **module._buffers}.get(key)
        found = None if tensor is None else tuple(tensor.shape)
        if tensor is None or found != wide:
            raise ArchitectureError(f"{name}.{key}", f"of shape {wide}", f"of shape {found}")
        if len(narrow) != len(wide) or any(n > w for n, w in zip(narrow, wide, strict=True)):
            raise ValueError(f"{name}.{key} is {narrow}, narrowed from {wide}")
        empty: Any = torch.empty(narrow, dtype=tensor.dtype, device="meta")
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
        setattr(module, key, empty)
    for key, value in notes["settings"].items():
        found = getattr(module, key, None)
        if isinstance(found, int | tuple) and found != value:
            setattr(module, key, tuple(value) if isinstance(found, tuple) else value)


def _stand_in(
    saved: Description, name: str, module: nn.Module, notes: Mapping[str, Any], memo: Memo
) -> nn.Module:
    kind = layer_kinds().get(notes["kind"])
    if kind is None:
        raise CheckpointFileError(
            saved.path,
            f"layer {name!r} is of the kind {str(notes['kind'])[:80]!r}, which no installed "
            "package registers: install the one that the model was compressed with",
        )
    if not kind.matches(module):
        raise ArchitectureError(name, f"of the kind {notes['kind']!r}", _type(module))
    reason = kind.refusal(module)
    if reason is not None:
        raise ArchitectureError(name, "compressed", f"one that cannot be: {reason}")
    slots = {slot.name: slot for slot in kind.slots(module)}
    factors = {key: _empty(slots[key], stages) for key, stages in notes["slots"].items()}
    return kind.rebuild(module, factors, dict(notes["own"]), memo)


def _empty(slot: Slot, described: Any) -> Factors:
    """Give the factors that stages describe, without values, if they are of this weight."""
    stages = stages_from(described)
    shape = slot.shape
    if sum(stage.size for stage in stages) > prod(shape):
        raise ValueError("factors of more numbers than the weight has")
    if any(s.groups > _MOST_GROUPS or s.shape[0] % s.groups for s in stages):
        raise ValueError("factors of odd groups")
    dtype = slot.parameters[0].dtype
    factors = empty_factors(stages, dtype, "meta")
    product = tuple(multiply_out(factors, slot.groups).shape)
    if product != (shape[0] * shape[1], *shape[2:]):
        raise ValueError(f"factors of a weight {product}, where it has {shape}")
    return factors.holding([nn.Parameter(t) for t in factors.stored])


def _tie(model: nn.Module, ties: Mapping[str, str]) -> None:
    """Give each further name of a tensor the tensor of its first name."""
    for name, source in ties.items():
        put(model, name, _tensor(model, source))


def _tensor(model: nn.Module, name: str) -> torch.Tensor:
    prefix, _, leaf = name.rpartition(".")
    module = model.get_submodule(prefix)
    tensor = {**module._parameters, **module._buffers}.get(leaf)
    if tensor is None:
        raise ArchitectureError(name, "a tensor", "absent")
    return tensor


def put(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put a tensor in the place of one that the model has, in place."""
    prefix, _, leaf = name.rpartition(".")
    module = model.get_submodule(prefix)
    if leaf in module._buffers:
        module._buffers[leaf] = tensor
    elif leaf in module._parameters:
        setattr(module, leaf, tensor)
    else:
        raise ArchitectureError(name, f"a tensor {tuple(tensor.shape)}", "absent")


def _same_tensors(model: nn.Module, saved: SavedModel) -> None:
    """Refuse a model that has other tensors than the file, by the first difference."""
    ties = saved.structure["ties"]
    expected = {n: tuple(t.shape) for n, t, stored in named_tensors(model) if stored}
    for name, shape in expected.items():
        found = saved.shapes.get(ties.get(name, name))
        if found != shape:
            of_file = "absent" if found is None else f"a tensor {found}"
            raise ArchitectureError(name, of_file, f"a tensor {shape}")
    for name, shape in saved.shapes.items():
        if name not in expected:
            raise ArchitectureError(name, f"a tensor {shape}", "absent")
