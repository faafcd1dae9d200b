"""Files of tensors: written under another name and renamed, read with everything checked.

The format is that of safetensors; the header's metadata has the structure and its digest. Several
files in a folder have an index, written last: until it is there, the folder is what it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import SaveError

VERSION = 1
# As the format calls them.
NAMES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16",
    torch.uint16: "U16", torch.float16: "F16", torch.bfloat16: "BF16", torch.int32: "I32",
    torch.uint32: "U32", torch.float32: "F32", torch.float64: "F64", torch.int64: "I64",
    torch.uint64: "U64", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
}  # fmt: skip
INDEX = "model.safetensors.index.json"
PREFIX = "skcompress."


def metadata(structure: Mapping[str, Any]) -> dict[str, str]:
    """What a header says beside the tensors: strings only."""
    text = json.dumps(structure, separators=(",", ":"), allow_nan=False)
    return {
        "format": "pt",
        f"{PREFIX}version": str(VERSION),
        f"{PREFIX}structure": text,
        f"{PREFIX}digest": hashlib.sha256(text.encode()).hexdigest(),
    }


def checksum(tensor: Tensor) -> int:
    """CRC-32 of the bytes of a tensor."""
    return zlib.crc32(_bytes(tensor))


def _bytes(tensor: Tensor) -> Any:
    """The bytes of a tensor, as a buffer."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else b""


def write_file(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write one file, whole or not at all; what was at `path` is there until then."""
    # The largest numbers first, so that each tensor begins at a multiple of its numbers' size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    entries: dict[str, Any] = {"__metadata__": dict(sorted(header.items()))}
    end = 0
    for name in names:
        tensor, begin = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with _replacing(path) as temporary, temporary.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(_bytes(tensors[name]))


def write_folder(
    folder: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str], shard_bytes: int
) -> None:
    """Write files of at most `shard_bytes` and their index; files of the model before go last."""
    try:
        from huggingface_hub import split_torch_state_dict_into_shards
    except ImportError as cause:
        raise SaveError(
            "a model in several files takes huggingface_hub",
            "pip install huggingface_hub, or set shard_bytes above the size of the model",
        ) from cause
    folder.mkdir(parents=True, exist_ok=True)
    # Names that no other model has: what is there stays whole until the index says otherwise.
    pattern = f"model-{secrets.token_hex(4)}{{suffix}}.safetensors"
    split = split_torch_state_dict_into_shards(
        dict(tensors), filename_pattern=pattern, max_shard_size=shard_bytes
    )
    before = _files_of(folder)
    written = []
    try:
        for name, keys in split.filename_to_tensors.items():
            written.append(folder / name)
            write_file(folder / name, {key: tensors[key] for key in keys}, {"format": "pt"})
        places = {key: name for name, keys in split.filename_to_tensors.items() for key in keys}
        index = {"metadata": {**header, **split.metadata}, "weight_map": places}
        with _replacing(folder / INDEX) as temporary:
            temporary.write_text(json.dumps(index, indent=1))
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    for name in before:
        (folder / name).unlink(missing_ok=True)


def _files_of(folder: Path) -> set[str]:
    """Files that the index of a folder names; only those in it."""
    try:
        places = json.loads((folder / INDEX).read_text())["weight_map"].values()
        return {str(name) for name in places if Path(str(name)).name == name}
    except (OSError, ValueError, KeyError, AttributeError, RecursionError):
        return set()


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a name to write to; afterwards it is flushed to the disk and takes the place of `path`.

    Two writers have names of their own: the later one's file is there in the end, whole.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
