"""The tensors of a model that go into a file: shared ones once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import SaveError
from .files import NAMES


@dataclass
class Contents:
    """Tensors by name, and what is known of their names.

    ties : for each further name of a tensor the one that it is stored under
    frozen : parameters that are not trained
    unsaved : buffers that the model computes itself: their dtypes
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    ties: dict[str, str] = field(default_factory=dict)
    frozen: list[str] = field(default_factory=list)
    unsaved: dict[str, str] = field(default_factory=dict)


def contents_of(model: nn.Module) -> Contents:
    """List the tensors of a model as they are, with values or without."""
    contents = Contents()
    first: dict[int, str] = {}
    for name, tensor, saved in named_tensors(model):
        if not saved:
            contents.unsaved[name] = dtype_name(tensor.dtype)
            continue
        if id(tensor) in first:
            contents.ties[name] = first[id(tensor)]
            continue
        first[id(tensor)] = name
        contents.tensors[name] = tensor
        if isinstance(tensor, nn.Parameter) and not tensor.requires_grad:
            contents.frozen.append(name)
    _refuse_more(model)
    return contents


def storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors for a file; what cannot be stored is a `SaveError` that names it."""
    return {name: _storable(name, tensor) for name, tensor in tensors.items()}


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """Every parameter and buffer under each of its names, and whether a file has it."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        held = (module._parameters, True), (module._buffers, False)
        for tensors, parameters in held:
            for name, tensor in tensors.items():
                if tensor is not None:
                    saved = parameters or name not in module._non_persistent_buffers_set
                    yield f"{prefix}.{name}".lstrip("."), tensor, saved


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a dtype within torch: "float16"."""
    return str(dtype).removeprefix("torch.")


def _storable(name: str, tensor: Tensor) -> Tensor:
    if is_lazy(tensor):
        raise SaveError(f"{name!r} is not initialised", "run one batch through the model first")
    if tensor.is_meta:
        raise SaveError(
            f"{name!r} has no values (meta device)",
            "load or fetch them first; offloaded models are saved before they are offloaded",
        )
    plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
    if not plain or tensor.dtype not in NAMES:
        raise SaveError(
            f"{name!r} is a {type(tensor).__name__} of {tensor.dtype}",
            "save the model before it is quantised or sharded; full_tensor() gathers a shard",
        )
    if tensor.layout is not torch.strided:
        raise SaveError(f"{name!r} has layout {tensor.layout}", "make it dense: zeros are packed")
    return tensor.detach()


def _refuse_more(model: nn.Module) -> None:
    """Refuse what modules save beside parameters and buffers: there is no place for it."""
    usual = nn.Module.get_extra_state
    for name, module in model.named_modules():
        if type(module).get_extra_state is not usual:
            raise SaveError(
                f"the module {name!r} ({type(module).__name__}) has a state of its own beside its "
                "parameters and buffers (get_extra_state)",
                "only tensors are saved",
            )
