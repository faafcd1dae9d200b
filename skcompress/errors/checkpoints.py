"""Models that cannot be saved, and files that cannot be loaded."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

from .base import SkcompressError, described


class SaveError(SkcompressError, ValueError):
    """A model, or a place, with which `save` can do nothing; nothing was written."""

    def __init__(self, about: str, advice: str):
        super().__init__(f"{about}: {advice}")


class CheckpointFileError(SkcompressError, ValueError):
    """A file that is damaged, forged, of a newer version, or no file of ours; nothing was built."""

    def __init__(self, path: str | PathLike[str], fault: str):
        super().__init__(f"{str(path)!r} cannot be loaded: {fault}")


class ArchitectureError(SkcompressError, ValueError):
    """A model to load into that is not what the file was made of: the first difference."""

    def __init__(self, name: str, of_file: str, of_model: str):
        super().__init__(
            f"{name or 'the model'!r} is {of_file} in the file and {of_model} in the model to load "
            "into: give the function that builds the architecture that was compressed"
        )


class FactoryError(SkcompressError, TypeError):
    """Something that gives no model to load into."""

    def __init__(self, received: object, cause: BaseException | None = None):
        why = f"; it raised {type(cause).__name__}: {cause}" if cause is not None else ""
        super().__init__(
            "load takes the uncompressed model, on any device, or a function without arguments "
            f"that builds it; got {described(received)}{why}"
        )


class PlainError(SkcompressError, ValueError):
    """Layers that no modules of torch.nn can stand for."""

    def __init__(self, reasons: Mapping[str, str]):
        listed = "; ".join(f"{name or '(model)'!r}: {why}" for name, why in reasons.items())
        super().__init__(
            f"no torch.nn classes alone can stand for {listed}. Leave them dense when compressing "
            "(exclude=), or multiply them out with to_plain(model, dense=True)"
        )
