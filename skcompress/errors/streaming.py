"""Checkpoints that are compressed on disk, and what can go wrong with their files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .base import SkcompressError


class CheckpointSourceError(SkcompressError, ValueError):
    """A path that is no checkpoint of safetensors, or a damaged one."""

    def __init__(self, path: Path, reason: str):
        super().__init__(
            f"{str(path)!r} cannot be read as a checkpoint: {reason}. A checkpoint is a "
            ".safetensors file, or a folder with model.safetensors or "
            "model.safetensors.index.json and its shards"
        )


class CheckpointArchitectureError(SkcompressError, ValueError):
    """No network can be built that a checkpoint's tensors belong to."""

    def __init__(self, path: Path, reason: str):
        super().__init__(
            f"the architecture of {str(path)!r} is not known: {reason}. Pass "
            "model=a function that builds the network, such as lambda: MyNetwork(width=64)"
        )


class CheckpointMismatchError(SkcompressError, ValueError):
    """Tensors of a checkpoint that are not those of the network."""

    def __init__(self, path: Path, name: str, received: str, expected: str):
        super().__init__(
            f"tensor {name!r} of {str(path)!r} {received}, the network {expected}: pass the "
            "architecture that the checkpoint was saved from as model="
        )


class CheckpointCompressorError(SkcompressError, TypeError):
    """A compressor that cannot work tensor by tensor."""

    def __init__(self, received: object):
        super().__init__(
            "compress_checkpoint takes a low-rank compressor, such as SVDCompressor(rank=0.3); "
            f"got {received!r}. Others need the whole model: load it and use fit_transform"
        )


class CheckpointPlaceError(SkcompressError, ValueError):
    """A destination that is the source, or lies inside it."""

    def __init__(self, source: Path, destination: Path):
        super().__init__(
            f"destination {str(destination)!r} is, holds or lies in the source {str(source)!r}, "
            "which has to stay as it is until the end: write to another place"
        )


class CheckpointExistsError(SkcompressError, FileExistsError):
    """Something is at the destination already."""

    def __init__(self, path: Path):
        super().__init__(f"{str(path)!r} exists: pass overwrite=True to replace it at the end")


class CheckpointBusyError(SkcompressError, RuntimeError):
    """Another process writes to the same destination."""

    def __init__(self, path: Path):
        super().__init__(
            f"another process is writing {str(path)!r}: wait for it, or write to another place"
        )


class UnfinishedCheckpointError(SkcompressError, RuntimeError):
    """An unfinished run that was begun in another way."""

    def __init__(self, path: Path, differences: Sequence[str]):
        super().__init__(
            f"an unfinished run for {str(path)!r} was begun with "
            f"{' and '.join(f'another {d}' for d in differences)}: go on with the same, or pass "
            "restart=True to begin anew"
        )


class SourceChangedError(SkcompressError, RuntimeError):
    """Files of the source that changed while they were read."""

    def __init__(self, path: Path):
        super().__init__(
            f"{str(path)!r} changed while it was being compressed: nothing was written. Call "
            "again when nobody writes to it"
        )


class CheckpointWriteError(SkcompressError, OSError):
    """The disk is full, or does not take the files for another reason."""

    def __init__(self, path: Path, cause: OSError):
        super().__init__(
            f"cannot write {str(path)!r}: {cause.strerror or cause}. What was at the destination "
            "is as it was; make room or choose another place, and the same call goes on where "
            "this one stopped"
        )
