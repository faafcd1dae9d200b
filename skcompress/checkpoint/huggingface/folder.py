"""`save` and `load` of models of transformers: the folders of `save_pretrained`, written whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from ...errors import ArchitectureError, CheckpointFileError
from ...layers.pretrained import METHOD, is_pretrained, let_save
from ..contents import named_tensors
from ..files import INDEX, PREFIX
from ..reading import FORGED, Description
from ..rebuilding import restructured
from ..streaming_journal import Workplace
from .structure import checked_structure, relocated

CONFIG = "config.json"
_DENSE = {"base": "", "stand_ins": {}, "layers": {}, "ties": {}, "frozen": [], "unsaved": {}}


def write_pretrained(model: Any, path: Path, shard_bytes: int) -> None:
    """Let a model write its folder beside the place, and put it there; other files stay in it."""
    let_save(model)  # channels may have gone without a copy being made
    place = Workplace(path)
    with place.alone():
        journal = place.begin({"source": None}, overwrite=True, restart=True)
        model.save_pretrained(place.result, max_shard_size=shard_bytes)
        for file in path.iterdir() if path.is_dir() else ():
            if not (place.result / file.name).exists() and not _has_weights(file):
                copy = shutil.copytree if file.is_dir() else shutil.copyfile
                copy(file, place.result / file.name)
        place.finish(journal)


def _has_weights(file: Path) -> bool:
    return file.name.startswith("model") and ".safetensors" in file.name


def is_pretrained_folder(path: Path) -> bool:
    """Whether a model of transformers was saved there, and no other one by `save` since."""
    index = path / INDEX
    ours = index.is_file() and f'"{PREFIX}version"'.encode() in index.read_bytes()
    return (path / CONFIG).is_file() and not ours


def load_pretrained(path: Path, skeleton: Any) -> nn.Module:
    """Load such a folder as the class of `skeleton`, an uncompressed model without values.

    Raises
    ------
    ArchitectureError : it is no such model; CheckpointFileError : the folder is damaged
    """
    if not is_pretrained(skeleton):
        raise ArchitectureError("", "a model of transformers", f"a {type(skeleton).__name__}")
    try:
        said = json.loads((path / CONFIG).read_bytes())
        ours = said.get("quantization_config") or {}
    except (OSError, *FORGED) as cause:
        raise CheckpointFileError(path / CONFIG, f"it is no configuration ({cause})") from cause
    try:
        model, report = type(skeleton).from_pretrained(path, output_loading_info=True)
    except (ArchitectureError, CheckpointFileError):
        raise
    except (OSError, *FORGED) as cause:
        fault = f"{type(cause).__name__}: {str(cause)[:200]}"
        raise CheckpointFileError(path, fault) from cause
    lacking = sorted({*report["missing_keys"], *report["unexpected_keys"]})
    if lacking:
        raise ArchitectureError(lacking[0], *_where(lacking[0], report["missing_keys"]))
    compressed = ours.get("quant_method") == METHOD
    structure = checked_structure(ours["structure"]) if compressed else dict(_DENSE, training=False)
    _same_tensors(
        restructured(skeleton, Description(path, relocated(structure, skeleton), {})), model
    )
    trained: Any = structure["training"]
    for name, module in model.named_modules():
        module.training = trained if isinstance(trained, bool) else name in trained
    return model


def _where(name: str, missing: Any) -> tuple[str, str]:
    return ("absent", "a tensor") if name in missing else ("a tensor", "absent")


def _same_tensors(expected: nn.Module, model: nn.Module) -> None:
    """Refuse an architecture with tensors of other names or shapes, by the first difference."""
    found = {name: tuple(t.shape) for name, t, stored in named_tensors(model) if stored}
    wanted = {name: tuple(t.shape) for name, t, stored in named_tensors(expected) if stored}
    for name in {**wanted, **found}:
        if found.get(name) != wanted.get(name):
            of_file, of_model = found.get(name, "absent"), wanted.get(name, "absent")
            raise ArchitectureError(name, f"{of_file}", f"{of_model}")
