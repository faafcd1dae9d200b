"""The network that the tensors of a checkpoint belong to, without values."""

from __future__ import annotations

import copy
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import (
    CheckpointArchitectureError,
    CheckpointMismatchError,
    CheckpointSourceError,
    ModelTypeError,
)
from .streaming_source import DTYPES, Source, Stored

# Parts of names that matrices have which are looked up, not multiplied by.
_LOOKED_UP = ("emb", "wte", "wpe", "shared")


@dataclass(frozen=True)
class Architecture:
    """A network on the meta device, and where the values of its tensors are.

    values : by the id of a parameter or buffer, what the checkpoint has for it
    further : tensors of the checkpoint that the network has not under these names
    """

    model: nn.Module
    values: dict[int, Stored]
    further: list[Stored]

    @classmethod
    def of(cls, source: Source, model: Any = None) -> Architecture:
        """Build the network of a checkpoint.

        model : a function that builds it, or a module that is like it; None for what
            config.json says, through transformers, and where there is none for linear layers
            of the tensors' shapes
        """
        strict = model is not None
        if isinstance(model, nn.Module):
            built = model
        elif model is not None:
            built = _called(model)
        elif source.config() is not None:
            built = _of_transformers(source)
        else:
            built = _of_linear_layers(source)
        named = {name: name for name in source.tensors} if strict else _loaded_as(source, built)
        tensors_of = {name: source.tensors[own] for name, own in named.items()}
        built = _without_values(built)
        aliases: dict[int, list[str]] = defaultdict(list)
        tensors: dict[int, Tensor] = {}
        for name, tensor in named_tensors(built):
            aliases[id(tensor)].append(name)
            tensors[id(tensor)] = tensor
        values: dict[int, Stored] = {}
        for key, names in aliases.items():
            found = [tensors_of[name] for name in names if name in tensors_of]
            if not found:
                if strict:
                    raise CheckpointMismatchError(source.path, names[0], "is missing", "has it")
                continue
            values[key] = found[0]
            _take_over(source.path, tensors[key], found[0])
        known = {named[name] for names in aliases.values() for name in names if name in named}
        further = [stored for name, stored in source.tensors.items() if name not in known]
        if further and (strict or not values):
            raise CheckpointMismatchError(
                source.path, further[0].name, f"is of shape {further[0].shape}", "has no such"
            )
        return cls(built, values, further)

    def has(self, module: nn.Module) -> bool:
        """Whether the checkpoint has values for all parameters of a module."""
        return all(id(p) in self.values for p in module.parameters())


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and persistent buffer under every name that it has."""
    yield from model.state_dict(keep_vars=True).items()


def _take_over(path: Path, tensor: Tensor, stored: Stored) -> None:
    """Give a tensor without values the dtype that the checkpoint has; refuse another shape."""
    if tuple(tensor.shape) != stored.shape:
        raise CheckpointMismatchError(
            path, stored.name, f"is of shape {stored.shape}", f"has {tuple(tensor.shape)}"
        )
    dtype = DTYPES.get(stored.dtype)
    if dtype is None:
        raise CheckpointSourceError(path, f"{stored.name!r} is of unknown dtype {stored.dtype}")
    if not dtype.is_floating_point:
        tensor.requires_grad_(False)
    tensor.data = torch.empty(stored.shape, dtype=dtype, device="meta")


def _without_values(model: nn.Module) -> nn.Module:
    """Copy a model to the meta device; what is shared stays shared."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo).eval()


def _called(factory: Callable[[], Any]) -> nn.Module:
    if not callable(factory):
        raise ModelTypeError("compress_checkpoint", factory)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        built = factory()
    if not isinstance(built, nn.Module):
        raise ModelTypeError("compress_checkpoint", built)
    return built


def transformers_class(path: Path) -> Any:
    """Give the class of transformers that the configuration in a folder names.

    Raises CheckpointArchitectureError where transformers does not know it.
    """
    return _named_class(path)[0]


def _named_class(path: Path) -> tuple[Any, Any]:
    try:
        import transformers
    except ImportError as cause:
        raise CheckpointArchitectureError(
            path, "its config.json is read by transformers, which is not installed"
        ) from cause
    try:
        config = transformers.AutoConfig.from_pretrained(str(path))
    except (ValueError, OSError, KeyError) as cause:
        raise CheckpointArchitectureError(path, str(cause).splitlines()[0]) from cause
    named = [getattr(transformers, name, None) for name in config.architectures or ()]
    return next((cls for cls in named if cls is not None), transformers.AutoModel), config


def _of_transformers(source: Source) -> nn.Module:
    cls, config = _named_class(source.path)
    build = getattr(cls, "from_config", cls)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return build(config)  # type: ignore[no-any-return]
    except (ValueError, KeyError, AttributeError) as cause:
        raise CheckpointArchitectureError(source.path, str(cause).splitlines()[0]) from cause


def _loaded_as(source: Source, model: Any) -> dict[str, str]:
    """By the name that it has in the network, the name of each tensor in the files.

    transformers renames tensors of older checkpoints; what it also computes with, such as
    experts that it joins, keeps the name that it has.
    """
    own = {name: name for name in source.tensors}
    core = sys.modules.get("transformers.core_model_loading")
    if core is None:  # as long as nobody imports transformers, no model can be one of its
        return own
    from transformers.conversion_mapping import get_model_conversion_mapping

    if not hasattr(model, "config"):
        return own
    steps = get_model_conversion_mapping(model)
    renamings = [step for step in steps if isinstance(step, core.WeightRenaming)]
    known = dict(named_tensors(model))
    renamed: dict[str, str] = {}
    for name in source.tensors:
        new = name
        for renaming in renamings:
            new, _ = renaming.rename_source_key(new)
        if name not in known and new in known:
            del own[name]
            renamed[new] = name
    return {**renamed, **own}


class Unknown(nn.Module):
    """Holds tensors of which nothing is known but names and shapes."""


def _of_linear_layers(source: Source) -> nn.Module:
    """Make of every matrix called `weight` a linear layer, but for embeddings."""
    held: dict[str, dict[str, Stored]] = defaultdict(dict)
    for name, stored in source.tensors.items():
        path, _, own = name.rpartition(".")
        held[path][own] = stored
    root: nn.Module = Unknown()
    if held.keys() == {""} and _is_linear("", held[""], held):
        return _linear(held[""])
    for path, tensors in held.items():
        parent, _, last = path.rpartition(".")
        if last and _is_linear(path, tensors, held):
            _child(root, parent).add_module(last, _linear(tensors))
            continue
        holder = _child(root, path)
        for name, stored in tensors.items():
            empty = torch.empty(stored.shape, dtype=DTYPES.get(stored.dtype), device="meta")
            holder.register_parameter(name, nn.Parameter(empty, False))
    return root


def _is_linear(path: str, tensors: dict[str, Stored], held: dict[str, Any]) -> bool:
    weight, bias = tensors.get("weight"), tensors.get("bias")
    return (
        tensors.keys() <= {"weight", "bias"}
        and weight is not None
        and len(weight.shape) == 2
        and (bias is None or bias.shape == weight.shape[:1])
        and not any(part in path.rpartition(".")[2].lower() for part in _LOOKED_UP)
        and not any(other.startswith(f"{path}.") for other in held if path)
    )


def _linear(tensors: dict[str, Stored]) -> nn.Linear:
    out, inputs = tensors["weight"].shape
    return nn.Linear(inputs, out, bias="bias" in tensors, device="meta")


def _child(root: nn.Module, path: str) -> nn.Module:
    """Find a module by its path; what is missing on the way is made."""
    for part in path.split(".") if path else ():
        if part not in root._modules:
            root.add_module(part, Unknown())
        root = root._modules[part]  # type: ignore[assignment]
    return root
