"""Files of safetensors that are laid out before there are values for them."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .streaming_source import DTYPES, INDEX, WHOLE, Stored

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Numbers converted at a time.
_PIECE = 2**22


@dataclass(frozen=True)
class Entry:
    """A tensor to come. dtype : as safetensors call it"""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def like(cls, name: str, tensor: Tensor) -> Entry:
        """Announce a tensor of this dtype and shape."""
        return cls(name, _NAMES[tensor.dtype], tuple(tensor.shape))

    @property
    def n_bytes(self) -> int:
        """Bytes of the values."""
        return prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class _Shard:
    name: str
    header: bytes
    starts: dict[str, int]
    size: int


class Shards:
    """Files that hold announced tensors, each no larger than a limit where it can be.

    entries : in this order; limit : bytes of values in a file, None for one file;
    metadata : goes into each header

    Values are written in any order, each to its place.
    """

    def __init__(
        self,
        folder: Path,
        entries: Sequence[Entry],
        limit: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ):
        self.folder = folder
        self.entries = {entry.name: entry for entry in entries}
        parts = _cut(entries, limit)
        total = len(parts)
        names = [f"model-{i + 1:05}-of-{total:05}.safetensors" for i in range(total)]
        named = zip([WHOLE] if total == 1 else names, parts, strict=True)
        self._shards = [_laid_out(name, part, metadata or {}) for name, part in named]
        self._home = {name: shard for shard in self._shards for name in shard.starts}

    @property
    def n_bytes(self) -> int:
        """Size of all files."""
        return sum(shard.size for shard in self._shards)

    def create(self) -> bool:
        """Make the files in their full sizes, so that a full disk is known now.

        Returns whether all of them were there.
        """
        self.folder.mkdir(exist_ok=True)
        paths = {self.folder / shard.name: shard for shard in self._shards}
        there = {p: p.exists() and p.stat().st_size == s.size for p, s in paths.items()}
        for path, shard in paths.items():
            with path.open("r+b" if there[path] else "wb") as file:
                if not there[path]:
                    _reserve(file, shard.size)
                file.write(shard.header)
        if len(self._shards) > 1:
            values = sum(entry.n_bytes for entry in self.entries.values())
            index = {
                "metadata": {"total_size": values},
                "weight_map": {name: self._home[name].name for name in self.entries},
            }
            (self.folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
        return all(there.values())

    def write(self, name: str, tensor: Tensor) -> None:
        """Write the values of a tensor, in the dtype that was announced."""
        entry = self.entries[name]
        assert tuple(tensor.shape) == entry.shape, (name, tensor.shape, entry.shape)
        shard, dtype = self._home[name], DTYPES[entry.dtype]
        with (self.folder / shard.name).open("r+b") as file:
            file.seek(shard.starts[name])
            for piece in tensor.detach().reshape(-1).split(_PIECE):
                values = piece.to("cpu", dtype).contiguous()
                file.write(values.view(torch.uint8).numpy().data)

    def copy(self, name: str, stored: Stored) -> None:
        """Write the values of a tensor of another file, bit for bit."""
        shard = self._home[name]
        with (self.folder / shard.name).open("r+b") as file:
            file.seek(shard.starts[name])
            for piece in stored.pieces():
                file.write(piece)

    def sync(self, names: Sequence[str] | None = None) -> None:
        """Wait until the disk has what was written of these tensors; of all by default."""
        homes = self._shards if names is None else [self._home[name] for name in names]
        for name in {shard.name for shard in homes}:
            with (self.folder / name).open("r+b") as file:
                os.fsync(file.fileno())


def _reserve(file: BinaryIO, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as cause:
            if cause.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
        else:
            return
    file.truncate(size)  # where the file system cannot set room aside


def _cut(entries: Sequence[Entry], limit: int | None) -> list[list[Entry]]:
    parts: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if limit is not None and parts[-1] and size + entry.n_bytes > limit:
            parts.append([])
            size = 0
        parts[-1].append(entry)
        size += entry.n_bytes
    return parts


def _laid_out(name: str, entries: Sequence[Entry], metadata: Mapping[str, str]) -> _Shard:
    about: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    at = 0
    # Wide numbers first: each begins where its width divides.
    for entry in sorted(entries, key=lambda e: -DTYPES[e.dtype].itemsize):
        stop = at + entry.n_bytes
        about[entry.name] = {
            "dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [at, stop],
        }  # fmt: skip
        at = stop
    text = json.dumps(about, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    starts = {e.name: len(header) + about[e.name]["data_offsets"][0] for e in entries}
    return _Shard(name, header, starts, len(header) + at)
