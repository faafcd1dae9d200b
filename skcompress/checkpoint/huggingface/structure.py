"""What config.json says of a compressed model, and the same for another class of the same family.

The configuration describes the architecture, so only what compressing changed is said. A model that
was saved with its head may be loaded without, or with another one: the base model has another place
in it then.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ArchitectureError
from ..contents import contents_of
from ..structure import structure_of

VERSION = 1
_KEYS = ("stand_ins", "layers", "training", "frozen", "ties", "unsaved")


def pretrained_structure(model: nn.Module) -> dict[str, Any]:
    """Say what a model of transformers has become, in words of JSON.

    As in docs/format.md, but for `layers`, which has those alone that are not as the configuration
    says, and `base`, the place of the base model within the model, "" where it is itself one.
    """
    structure = structure_of(model, contents_of(model))
    changed = {
        name: notes
        for name, notes in structure["layers"].items()
        # What a batch normalisation leaves behind that became part of the layer before it.
        if notes.keys() - {"class", "settings"} or notes.get("class") == "Identity"
    }
    return {**structure, "layers": changed, "base": base_of(model)}


def is_compressed(structure: dict[str, Any]) -> bool:
    """Whether the configuration and the numbers alone would not make the model again."""
    return bool(structure["stand_ins"] or structure["layers"])


def base_of(model: Any) -> str:
    """Place of the base model in a model of transformers."""
    prefix: str = model.base_model_prefix
    return prefix if prefix and hasattr(model, prefix) else ""


def checked_structure(structure: Any) -> dict[str, Any]:
    """Give a structure as it was read; one that lacks parts is a ValueError."""
    missing = {*_KEYS, "base"}.difference(structure)
    if missing:
        raise ValueError(f"its structure lacks {', '.join(sorted(missing))}")
    return dict(structure)


def relocated(structure: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Give the structure in the names of `model`, of the same or another class of the family.

    What another class has no layer for is left out, as transformers leaves out its numbers; the
    same class has to have all of it.
    """
    old, new = str(structure["base"]), base_of(model)
    alike = structure.get("model") == type(model).__name__
    known = {name for name, _ in model.named_modules(remove_duplicate=False)}
    stand_ins = list(structure["stand_ins"])

    def moved(name: str) -> str:
        if old == new or (old and not name.startswith(f"{old}.")):
            return name
        inner = name[len(old) :].lstrip(".")
        return f"{new}.{inner}".strip(".")

    def layer_of(tensor: str) -> str:
        found = (layer for layer in stand_ins if tensor.startswith(f"{layer}."))
        return next(found, tensor.rpartition(".")[0])

    def here(layer: str) -> bool:
        return alike or moved(layer) in known

    def layers(key: str) -> dict[str, Any]:
        return {moved(name): notes for name, notes in structure[key].items() if here(name)}

    ties = {name: first for name, first in structure["ties"].items() if here(layer_of(name))}
    for name, first in ties.items():
        if not here(layer_of(first)):
            raise ArchitectureError(moved(name), f"stored as {first!r}", "without that")
    return {
        **structure,
        "stand_ins": layers("stand_ins"),
        "layers": layers("layers"),
        "ties": {moved(name): moved(first) for name, first in ties.items()},
        "frozen": [moved(name) for name in structure["frozen"] if here(layer_of(name))],
        "unsaved": {moved(n): d for n, d in structure["unsaved"].items() if here(layer_of(n))},
    }


def markers(structure: dict[str, Any]) -> dict[str, Tensor]:
    """Give an empty tensor under the name of each weight that is replaced.

    Transformers without skcompress would take the layers for dense ones that the file lacks, and
    draw random numbers for them: it fails at a weight of another shape.
    """
    return {name: torch.empty(0, dtype=torch.uint8) for name in marked(structure)}


def marked(structure: dict[str, Any]) -> list[str]:
    """Names of the weights that are replaced."""
    return [
        f"{layer}.{slot or 'weight'}".lstrip(".")
        for layer, notes in structure["stand_ins"].items()
        for slot in notes["slots"]
    ]
