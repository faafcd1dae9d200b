"""A compressed model in memory, written as one that never was there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from ..plan import Plan
from .huggingface.folder import CONFIG
from .streaming_architecture import named_tensors
from .streaming_journal import Workplace
from .streaming_output import Shards
from .streaming_source import WHOLE, Source
from .streaming_structure import FILE, Contents


def write_model(
    model: nn.Module,
    plan: Plan,
    destination: Path,
    *,
    companions_of: Path | None = None,
    overwrite: bool = False,
    max_shard_size: int = 5_000_000_000,
) -> int:
    """Write a compressed model as `compress_checkpoint` would; gives the bytes of its values.

    plan : what was done to it; companions_of : folder whose configuration goes along, into a
        folder; None for a single file
    """
    single = companions_of is None
    place = Workplace(destination, WHOLE if single else None)
    source = None if companions_of is None else Source.at(companions_of)
    contents = Contents.whole(model, source)
    with place.alone():
        journal = place.begin({"source": None}, overwrite=overwrite, restart=True)
        metadata = contents.metadata(plan) if single else None
        limit = None if single else max_shard_size
        shards = Shards(place.result, contents.entries, limit, metadata)
        shards.create()
        write_tensors(model, contents, shards)
        shards.sync()
        if source is not None:
            write_companions(source, place.result, contents, plan)
        place.finish(journal)
    return sum(entry.n_bytes for entry in contents.entries)


def write_tensors(compressed: nn.Module, contents: Contents, shards: Shards) -> list[str]:
    """Write those tensors of a model that are announced and not copied; gives their names."""
    tensors = dict(named_tensors(compressed))
    names = [n for n in tensors if n in shards.entries and n not in contents.copied]
    for name in names:
        shards.write(name, tensors[name])
    return names


def write_companions(source: Source, folder: Path, contents: Contents, plan: Plan) -> None:
    """Write beside the weights what the source's folder has beside its own, and the structure."""
    for file in source.companions():
        shutil.copyfile(file, folder / file.name)
    _write_json(folder / FILE, contents.about(plan))
    further = contents.for_transformers()
    if further:
        _write_json(folder / CONFIG, {**json.loads((folder / CONFIG).read_bytes()), **further})


def _write_json(path: Path, said: dict[str, Any]) -> None:
    path.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
