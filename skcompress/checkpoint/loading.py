"""From a file to a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.pivot import PivotedFactor
from ..layers.pretrained import settle
from ..layers.sparse import SparseTerm
from .contents import named_tensors
from .huggingface.folder import is_pretrained_folder, load_pretrained
from .reading import SavedModel, opened
from .rebuilding import put, rebuilt
from .skeleton import skeleton_of


def load(
    path: str | PathLike[str],
    model_or_factory: nn.Module | Callable[[], nn.Module],
    *,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Load a model that `save` wrote: the same outputs, bit for bit.

    path : of the file, or of the folder, of `save_pretrained` too
    model_or_factory : the function that builds the architecture that was compressed, without
        arguments, or such a model, on any device, whose numbers do not matter. It stays as it is.
    device : where the result lies

    The result has the precision, the mode and the frozen parameters of what was saved. Nothing of
    the file is executed, and all of it is checked before the model is built.

    Raises
    ------
    CheckpointFileError : the file is damaged or no file of ours, or its format is newer
    ArchitectureError : the architecture is another one; the first difference
    FactoryError : the function gives no model, or raises

    >>> import tempfile
    >>> from skcompress import load, save
    >>> make = lambda: torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
    >>> path = Path(tempfile.mkdtemp()) / "small.safetensors"
    >>> save(make().half(), path)
    >>> load(path, make)[0].weight.dtype
    torch.float16
    """
    if is_pretrained_folder(Path(path)):
        return load_pretrained(Path(path), skeleton_of(model_or_factory)).to(device)
    with opened(Path(path)) as saved:
        skeleton = skeleton_of(model_or_factory)
        model = rebuilt(skeleton, saved)
        _fill(model, saved)
        with saved.blamed():
            _set_modes(model, saved.structure["training"])
    settle(skeleton, model)
    return model.to(device)


def _fill(model: nn.Module, saved: SavedModel) -> None:
    """Read every tensor into its place."""
    with saved.blamed():
        ties, frozen = saved.structure["ties"], set(saved.structure["frozen"])
        computed: Mapping[str, Any] = saved.structure["unsaved"]
        places = list(named_tensors(model))
        read: dict[str, Tensor] = {}
        for name, empty, stored in places:
            if not stored:
                to_precision(model, name, empty, computed.get(name))
                continue
            source = ties.get(name, name)
            if source not in read:
                read[source] = _read(saved, source, empty, source not in frozen)
            put(model, name, read[source])
        for name, module in model.named_modules():
            _check_places(name, module)


def _read(saved: SavedModel, name: str, empty: Tensor, trained: bool) -> Tensor:
    tensor = saved.tensor(name, tuple(empty.shape))
    numbers = tensor.is_floating_point() or tensor.is_complex()
    if numbers != (empty.is_floating_point() or empty.is_complex()):
        raise ValueError(f"{name!r} has numbers of {tensor.dtype}")
    if isinstance(empty, nn.Parameter):
        return nn.Parameter(tensor, requires_grad=trained and numbers)
    return tensor


def to_precision(model: nn.Module, name: str, buffer: Tensor, dtype: str | None) -> None:
    """Give a buffer that the model computed itself the precision that it was used in."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else None
    if isinstance(found, torch.dtype) and buffer.is_floating_point() and found.is_floating_point:
        put(model, name, buffer.to(found))


def _check_places(name: str, module: nn.Module) -> None:
    """Refuse places that are none: they would be looked up in every forward."""
    if isinstance(module, PivotedFactor):
        order: Any = module.index
        channels = torch.arange(len(order))
        if order.dtype != torch.int64 or not torch.equal(order.sort().values, channels):
            raise ValueError(f"the order of channels of {name!r} is none")
    elif isinstance(module, SparseTerm):
        held: Any = module.positions
        positions = held.long().sort().values
        if len(positions) and not 0 <= int(positions[0]) <= int(positions[-1]) < module.size:
            raise ValueError(f"positions of {name!r} beyond its weight")
        if bool((positions.diff() == 0).any()):
            raise ValueError(f"positions of {name!r} that are given twice")


def _set_modes(model: nn.Module, training: Any) -> None:
    if isinstance(training, bool):
        model.train(training)
        return
    trained = set(training)
    for name, module in model.named_modules():
        module.training = name in trained
