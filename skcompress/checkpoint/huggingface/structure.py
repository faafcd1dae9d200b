"""What config.json says of a compressed model, and the same for another class of the same family.

The configuration describes the architecture, so only what compressing changed is said. A model that
was saved with its head may be loaded without, or with another one: the base model has another place
in it then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
    """Give the structure in the names of `model`, of the same or another class of the family."""
    known = {name for name, _ in model.named_modules(remove_duplicate=False)}
    alike = structure.get("model") == type(model).__name__
    renamed = _renaming(str(structure["base"]), base_of(model), known, alike)

    def of(names: Iterable[str], layer: Callable[[str], str]) -> dict[str, str]:
        pairs = ((name, renamed(name, layer(name))) for name in names)
        return {name: new for name, new in pairs if new is not None}

    layers = {
        key: {new: structure[key][name] for name, new in of(structure[key], _itself).items()}
        for key in ("stand_ins", "layers")
    }
    inside = sorted(structure["stand_ins"], key=len)

    def layer_of(tensor: str) -> str:
        found = (name for name in inside if tensor.startswith(f"{name}."))
        return next(found, tensor.rpartition(".")[0])

    ties = structure["ties"]
    places = of({*ties, *ties.values(), *structure["frozen"], *structure["unsaved"]}, layer_of)
    for name, source in ties.items():
        if name in places and source not in places:
            raise ArchitectureError(places[name], f"stored as {source!r}", "without that")
    return {
        **structure,
        **layers,
        "ties": {places[name]: places[ties[name]] for name in ties if name in places},
        "frozen": [places[name] for name in structure["frozen"] if name in places],
        "unsaved": {places[n]: d for n, d in structure["unsaved"].items() if n in places},
    }


def _itself(name: str) -> str:
    return name


def _renaming(old: str, new: str, known: set[str], alike: bool) -> Callable[[str, str], str | None]:
    """Give the function that knows a name in the model, None for what belongs to another head.

    old, new : places of the base model; known : names of the model's layers; alike : whether the
    model is of the class that was saved, and has to have all of it
    """

    def renamed(name: str, layer: str) -> str | None:
        if old and not name.startswith(f"{old}."):
            return name if layer in known else None
        if not old and not new:  # T5 for one, whose classes have no base model in common
            return name if alike or layer in known else None
        inner = name[len(old) :].lstrip(".") if old else name
        return f"{new}.{inner}".strip(".")

    return renamed


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
