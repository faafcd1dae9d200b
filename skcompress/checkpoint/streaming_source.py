"""A checkpoint on disk: which tensors it has and where, read a piece at a time.

Files are read, never mapped: pages of a mapped file count as memory of the process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointSourceError

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
# By the names that safetensors files have for them.
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip
# Bytes read at a time.
PIECE = 2**22
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class Stored:
    """One tensor in a file.

    dtype : safetensors' name of it; start, n_bytes : where its values are in the file
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    n_bytes: int

    def pieces(self) -> Iterator[memoryview]:
        """Yield the bytes of the values, some at a time; each takes the place of the last."""
        buffer = memoryview(bytearray(min(PIECE, self.n_bytes)))
        with self.file.open("rb") as file:
            file.seek(self.start)
            for done in range(0, self.n_bytes, PIECE):
                piece = buffer[: min(PIECE, self.n_bytes - done)]
                if file.readinto(piece) < len(piece):
                    raise CheckpointSourceError(self.file, "it became shorter meanwhile")
                yield piece

    def read(self, dtype: torch.dtype) -> Tensor:
        """Give the values as `dtype`, converted piece by piece: no second copy is made."""
        stored = DTYPES[self.dtype]
        result = torch.empty(self.shape, dtype=dtype)
        flat, done = result.view(-1), 0
        for piece in self.pieces():
            values = torch.frombuffer(piece, dtype=stored)
            flat[done : done + len(values)] = values
            done += len(values)
        return result


@dataclass(frozen=True)
class Source:
    """All tensors of a checkpoint, by name, in the order of its files.

    path : of the folder, or of the one file
    """

    path: Path
    files: tuple[Path, ...]
    tensors: dict[str, Stored]

    @classmethod
    def at(cls, path: Path) -> Source:
        """Read the headers of a checkpoint and check that its files are whole."""
        files, listed = _files(path)
        tensors: dict[str, Stored] = {}
        for file in files:
            for stored in _header(file):
                if stored.name in tensors:
                    raise CheckpointSourceError(path, f"two files have a tensor {stored.name!r}")
                tensors[stored.name] = stored
        missing = listed - tensors.keys()
        if missing:
            raise CheckpointSourceError(path, f"its index lists {min(missing)!r}, no file has it")
        if not tensors:
            raise CheckpointSourceError(path, "it has no tensors")
        return cls(path, tuple(files), tensors)

    @property
    def n_bytes(self) -> int:
        """Bytes of all values."""
        return sum(stored.n_bytes for stored in self.tensors.values())

    def config(self) -> dict[str, Any] | None:
        """Give what config.json says; None where there is none."""
        file = self.path / "config.json"
        if not (self.path.is_dir() and file.exists()):
            return None
        found: dict[str, Any] = _json(file, self.path)
        return found

    def stamp(self) -> tuple[tuple[int, int], ...]:
        """Sizes and times of the files, which change when somebody writes to them."""
        return tuple((s.st_size, s.st_mtime_ns) for s in (f.stat() for f in self.files))

    def digest(self) -> str:
        """Digest of every bit of the files and of config.json: about 1 GB/s."""
        found = hashlib.blake2b(digest_size=16)
        found.update(json.dumps(self.config(), sort_keys=True).encode())
        for path in self.files:
            with path.open("rb") as file:
                while piece := file.read(PIECE):
                    found.update(piece)
        return found.hexdigest()

    def companions(self) -> list[Path]:
        """Files of the folder that hold no weights: configuration, tokenizer, licence."""
        if not self.path.is_dir():
            return []
        pickled = {found for pattern in _PICKLED for found in self.path.glob(pattern)}
        return sorted(
            file
            for file in self.path.iterdir()
            if file.is_file() and file not in pickled
            and file.suffix != ".safetensors" and not file.name.endswith(".index.json")
        )  # fmt: skip


def _files(path: Path) -> tuple[list[Path], set[str]]:
    """Find the files of a checkpoint, and the names of the tensors that its index lists."""
    if path.is_file():
        return [path], set()
    if not path.is_dir():
        raise CheckpointSourceError(path, "there is no such file or folder")
    index = path / INDEX
    if index.exists():
        found = _json(index, path)
        weight_map = found.get("weight_map") if isinstance(found, dict) else None
        if not isinstance(weight_map, dict) or not all(
            isinstance(name, str) and Path(name).name == name for name in weight_map.values()
        ):
            raise CheckpointSourceError(path, f"{INDEX} has no weight_map of tensors to files")
        return [path / name for name in sorted(set(weight_map.values()))], set(weight_map)
    if (path / WHOLE).exists():
        return [path / WHOLE], set()
    alone = sorted(path.glob("*.safetensors"))
    if len(alone) == 1:
        return alone, set()
    if alone:
        names = ", ".join(file.name for file in alone[:4])
        raise CheckpointSourceError(path, f"it has {names}, and no {INDEX} that joins them")
    if any(next(path.glob(pattern), None) for pattern in _PICKLED):
        raise CheckpointSourceError(
            path, "its weights are pickled, and pickles can run code: save them with safetensors"
        )
    raise CheckpointSourceError(path, "it has no .safetensors file")


def _json(file: Path, path: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as cause:
        raise CheckpointSourceError(path, f"{file.name} is no JSON ({cause})") from cause


def _header(path: Path) -> list[Stored]:
    """List the tensors of one file, in the order of their values."""
    try:
        with safe_open(path, framework="pt"):  # checks offsets and sizes
            pass
    except (SafetensorError, OSError) as cause:
        raise CheckpointSourceError(path, str(cause)) from cause
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    found = [
        Stored(
            name,
            about["dtype"],
            tuple(about["shape"]),
            path,
            8 + size + about["data_offsets"][0],
            about["data_offsets"][1] - about["data_offsets"][0],
        )
        for name, about in header.items()
    ]
    return sorted(found, key=lambda stored: stored.start)
