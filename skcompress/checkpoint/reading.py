"""A saved model, opened: everything that can be checked of it alone is checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointFileError, SkcompressError
from .contents import dtype_name
from .files import INDEX, NAMES, PREFIX, VERSION, checksum
from .structure import shape_from
from .zeros import BITMASK, ROWS, SEPARATOR, unpacked

# Of an index, which is read as a whole; the header of a safetensors file has a limit of its own.
_LARGEST_INDEX = 100_000_000
_DTYPES = {name: dtype for dtype, name in NAMES.items()}
# What forged words of JSON may lead to where they are taken for what they should be.
FORGED = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RuntimeError,
    RecursionError, NotImplementedError, AssertionError,
)  # fmt: skip


class Description:
    """What a file says of a model, without the numbers.

    path : of the file, for messages; structure : as in docs/format.md; shapes : of every tensor of
    the model that is stored, as the model has it
    """

    def __init__(
        self, path: Path, structure: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]
    ):
        self.path, self.structure, self.shapes = path, structure, shapes

    @contextmanager
    def blamed(self, about: str = "") -> Iterator[None]:
        """Turn what forged words lead to into the error that the file deserves."""
        try:
            yield
        except SkcompressError:
            raise
        except (*FORGED, SafetensorError) as cause:
            what = f"{about}: " if about else ""
            fault = f"{what}it is damaged or forged ({type(cause).__name__}: {str(cause)[:200]})"
            raise CheckpointFileError(self.path, fault) from cause


class SavedModel(Description):
    """The structure in a file or folder, and its tensors, read one at a time."""

    def __init__(self, path: Path, header: Mapping[str, str], files: Mapping[str, Any]):
        super().__init__(path, _structure(path, header), {})
        self._files = files
        with self.blamed():
            self._packages = self._checked_packages()
            self.shapes = self._checked_shapes()

    def _checked_packages(self) -> dict[str, dict[str, str]]:
        """Give the parts of each packed tensor by their names, with the names in the file."""
        found = {}
        for name, package in dict(self.structure["packed"]).items():
            parts = tuple(package["parts"])
            if parts not in (BITMASK, ROWS):
                raise ValueError(f"{name!r} consists of {parts}")
            found[name] = {part: f"{name}{SEPARATOR}{part}" for part in parts}
        return found

    def _checked_shapes(self) -> dict[str, tuple[int, ...]]:
        """Compare what the structure says of the tensors with what the headers say."""
        said = dict(self.structure["tensors"])
        if said.keys() != self._files.keys():
            (odd, *_) = sorted(said.keys() ^ self._files.keys())
            raise ValueError(f"the tensor {odd!r} is not in both, structure and header")
        stored = {}
        for name, file in self._files.items():
            piece = file.get_slice(name)
            dtype, shape, _ = said[name]
            found = _DTYPES.get(piece.get_dtype())
            if found is None or dtype != dtype_name(found) or list(piece.get_shape()) != shape:
                raise ValueError(f"the tensor {name!r} is another than the structure says")
            stored[name] = tuple(shape)
        shapes = {}
        for name, parts in self._packages.items():
            shapes[name] = shape_from(self.structure["packed"][name]["shape"])
            for part in parts.values():
                del stored[part]
        return {**stored, **shapes}

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Read a tensor, of a shape that the model to load into has."""
        parts = self._packages.get(name)
        if parts is None:
            return self._read(name)
        return unpacked({part: self._read(key) for part, key in parts.items()}, shape)

    def _read(self, name: str) -> Tensor:
        # Memory of its own: what was read is a view of the file as it is mapped.
        tensor: Tensor = self._files[name].get_tensor(name).clone()
        if checksum(tensor) != self.structure["tensors"][name][2]:
            raise CheckpointFileError(self.path, f"the numbers of {name!r} are damaged")
        return tensor


@contextmanager
def opened(path: Path) -> Iterator[SavedModel]:
    """Open what `save` wrote; anything else is a `CheckpointFileError`."""
    with ExitStack() as stack:
        if path.is_dir():
            header, places = _index(path)
            names = sorted(set(places.values()))
            shards = {name: _opened(path / name, stack) for name in names}
            files = {key: shards[name] for key, name in places.items()}
            held = set().union(*(shard.keys() for shard in shards.values()))
            if held != files.keys():
                raise CheckpointFileError(path, f"its files hold other tensors than {INDEX} says")
        else:
            file = _opened(path, stack)
            header, files = file.metadata() or {}, dict.fromkeys(file.keys(), file)
        yield SavedModel(path, header, files)


def _opened(path: Path, stack: ExitStack) -> Any:
    if not path.is_file():
        raise CheckpointFileError(path, "there is no such file")
    try:
        return stack.enter_context(safe_open(path, framework="pt"))
    except (SafetensorError, OSError, ValueError, RuntimeError) as cause:
        raise CheckpointFileError(
            path, f"it is no whole safetensors file ({type(cause).__name__}: {str(cause)[:200]})"
        ) from cause


def _index(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Read the metadata and the places of tensors from the index of a folder."""
    path = folder / INDEX
    if not path.is_file():
        raise CheckpointFileError(folder, f"the folder has no {INDEX}")
    if path.stat().st_size > _LARGEST_INDEX:
        raise CheckpointFileError(path, "it is too large for an index")
    try:
        index = json.loads(path.read_bytes())
        header, places = dict(index["metadata"]), dict(index["weight_map"])
        if any(Path(str(name)).name != name for name in places.values()):
            raise ValueError("a file outside the folder")
    except FORGED as cause:
        fault = f"it is no index ({type(cause).__name__}: {str(cause)[:200]})"
        raise CheckpointFileError(path, fault) from cause
    return header, places


def _structure(path: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    """Read the structure from the metadata, of a version that this one knows."""
    version = header.get(f"{PREFIX}version")
    if version is None:
        raise CheckpointFileError(path, "skcompress.save did not write it: its header says nothing")
    if not str(version).isdecimal() or len(str(version)) > 9:
        raise CheckpointFileError(path, f"its format is of version {str(version)[:40]!r}")
    if int(version) > VERSION:
        raise CheckpointFileError(
            path,
            f"its format is of version {version}, this skcompress knows up to {VERSION}: "
            "pip install --upgrade skcompress",
        )
    text = header.get(f"{PREFIX}structure")
    digest = header.get(f"{PREFIX}digest")
    if not isinstance(text, str) or hashlib.sha256(text.encode()).hexdigest() != digest:
        raise CheckpointFileError(path, "its structure is damaged (another digest)")
    try:
        structure = json.loads(text)
    except FORGED as cause:
        raise CheckpointFileError(path, f"its structure is no JSON ({cause})") from cause
    keys = {"stand_ins", "layers", "training", "frozen", "ties", "unsaved", "packed", "tensors"}
    if not isinstance(structure, dict) or not keys <= structure.keys():
        raise CheckpointFileError(path, "its structure lacks parts")
    return structure
