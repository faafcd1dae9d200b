"""From a model to a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..errors import ModelTypeError, SaveError
from ..layers.pretrained import is_pretrained
from .contents import contents_of, dtype_name, storable
from .files import checksum, metadata, write_file, write_folder
from .huggingface.folder import write_pretrained
from .structure import structure_of
from .zeros import SEPARATOR, packed

_GIB = 1 << 30


def save(model: nn.Module, path: str | PathLike[str], *, shard_bytes: int = 50 * _GIB) -> None:
    """Save a model, compressed or not, with what it takes to build it again.

    model : its structure is read off it; how it was compressed does not matter
    path : of one safetensors file; of a folder where there is one already, or where the model
        has more than `shard_bytes`, with files of at most so many and their index. Of a model of
        transformers a folder unless it ends in ".safetensors": that of `save_pretrained`.

    What is shared is stored once, zeros of pruned weights take a bit each or less. Afterwards the
    whole file is there and on the disk; after an error the one that was there before.

    Raises
    ------
    SaveError : the model holds what cannot be saved, or the path cannot be written

    >>> import tempfile
    >>> from skcompress import load, save
    >>> from pathlib import Path
    >>> small = torch.nn.Sequential(torch.nn.Linear(3, 2))
    >>> path = Path(tempfile.mkdtemp()) / "small.safetensors"
    >>> save(small, path)
    >>> again = load(path, lambda: torch.nn.Sequential(torch.nn.Linear(3, 2)))
    >>> torch.equal(again[0].weight, small[0].weight)
    True
    """
    if not isinstance(model, nn.Module):
        raise ModelTypeError("save", model)
    if is_pretrained(model) and Path(path).suffix != ".safetensors":
        with _told(Path(path)):
            write_pretrained(model, Path(path), shard_bytes)
        return
    contents = contents_of(model)
    values = storable(contents.tensors)
    structure = structure_of(model, contents)
    tensors, structure["packed"] = _stored(values)
    structure["tensors"] = {
        name: [dtype_name(t.dtype), list(t.shape), checksum(t)] for name, t in tensors.items()
    }
    _write(Path(path), tensors, _header(structure), shard_bytes)


def _header(structure: dict[str, Any]) -> dict[str, str]:
    try:
        return metadata(structure)
    except (TypeError, ValueError) as cause:
        raise SaveError("the structure of the model is no JSON", str(cause)) from cause


def _stored(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Give what goes into the file, and of what is packed the names of its parts and its shape."""
    stored: dict[str, Tensor] = {}
    packages: dict[str, Any] = {}
    for name, tensor in tensors.items():
        on_cpu = tensor.cpu()
        parts = packed(on_cpu)
        if parts is None:
            stored[name] = on_cpu
        else:
            packages[name] = {"parts": list(parts), "shape": list(tensor.shape)}
            stored |= {f"{name}{SEPARATOR}{part}": value for part, value in parts.items()}
    return stored, packages


def _write(path: Path, tensors: dict[str, Tensor], header: dict[str, str], limit: int) -> None:
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    in_folder = path.is_dir() or size > limit
    if in_folder and path.exists() and not path.is_dir():
        raise SaveError(
            f"{str(path)!r} is a file, and a model of {size} bytes goes into a folder",
            f"give another path, or shard_bytes above {size}",
        )
    with _told(path):
        if in_folder:
            write_folder(path, tensors, header, limit)
        else:
            write_file(path, tensors, header)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as cause:
        raise SaveError(
            f"{str(path)!r} cannot be written ({type(cause).__name__}: {cause})",
            "what was there before is still there, whole",
        ) from cause
