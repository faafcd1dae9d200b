"""What a compressed checkpoint holds under which names, and how it says so."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..layers.pretrained import METHOD, is_pretrained
from ..plan import Plan
from .contents import contents_of
from .huggingface.structure import VERSION as PRETRAINED_VERSION
from .huggingface.structure import is_compressed, markers, pretrained_structure
from .streaming_architecture import Architecture, named_tensors
from .streaming_layers import Group
from .streaming_output import Entry
from .streaming_source import Source, Stored
from .structure import structure_of

# The file in the folder, and the key in the header of a single file.
FILE = "skcompress.json"
KEY = "skcompress"
VERSION = 1


@dataclass
class Contents:
    """The tensors of the result.

    copied : what stays as it is, by its name; shared : names that are not stored, since
    another one has the same values; structure : what the model is, as in docs/format.md;
    pretrained : whether its config.json says that, for transformers
    """

    entries: list[Entry] = field(default_factory=list)
    copied: dict[str, Stored] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    structure: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False

    @classmethod
    def of(
        cls, result: nn.Module, architecture: Architecture, made: set[str], source: Source
    ) -> Contents:
        """List what a compressed model without values consists of.

        result : of compressing the architecture's model; its names are those of the checkpoint
        made : names of the layers that have been replaced; source : what it was made of
        """
        values = architecture.values
        stored = {name: values.get(id(t)) for name, t in named_tensors(architecture.model)}
        found = cls()
        aliases: dict[int, list[str]] = defaultdict(list)
        tensors = dict(named_tensors(result))
        for name, tensor in tensors.items():
            aliases[id(tensor)].append(name)
        for names in aliases.values():
            fresh = [name for name in names if _inside(name, made)]
            old = [origin for name in names if (origin := stored.get(name)) and name not in fresh]
            if not (fresh or old):
                continue  # nor does the original checkpoint have it
            kept = fresh[0] if not old else old[0].name if old[0].name in names else names[0]
            if old:
                found.copied[kept] = old[0]
            found.entries.append(Entry.like(kept, tensors[kept]))
            found.shared |= {name: kept for name in names if name != kept}
        for further in architecture.further:
            found.entries.append(Entry(further.name, further.dtype, further.shape))
            found.copied[further.name] = further
        found._describe(result, source)
        return found

    @classmethod
    def whole(cls, result: nn.Module, source: Source | None) -> Contents:
        """List what a compressed model with values consists of.

        source : whose configuration goes along; None for none
        """
        found = cls()
        kept: dict[int, str] = {}
        for name, tensor in named_tensors(result):
            if id(tensor) in kept:
                found.shared[name] = kept[id(tensor)]
            else:
                kept[id(tensor)] = name
                found.entries.append(Entry.like(name, tensor))
        found._describe(result, source)
        return found

    def _describe(self, result: nn.Module, source: Source | None) -> None:
        configured = source is not None and source.config() is not None
        self.pretrained = configured and is_pretrained(result)
        if self.pretrained:
            self.structure = pretrained_structure(result)
            marks = markers(self.structure).items()
            self.entries.extend(Entry.like(name, mark) for name, mark in marks)
        else:
            self.structure = structure_of(result, contents_of(result))
        self.structure["ties"] = self.shared

    def about(self, plan: Plan) -> dict[str, Any]:
        """Say how the model was compressed, and what it is now unless config.json says so."""
        said = {"version": VERSION, "plan": plan.to_dict()}
        return said if self.pretrained else {**said, "structure": self.structure}

    def metadata(self, plan: Plan) -> Mapping[str, str]:
        """Give what there is to say for the header of a single file."""
        return {KEY: json.dumps(self.about(plan), separators=(",", ":"))}

    def for_transformers(self) -> dict[str, Any]:
        """What config.json has to say beside what it says of the original."""
        if not (self.pretrained and is_compressed(self.structure)):
            return {}
        said = {
            "quant_method": METHOD, "version": PRETRAINED_VERSION, "structure": self.structure,
        }  # fmt: skip
        return {"quantization_config": said}


def replaced_modules(groups: list[Group], plan: Plan) -> set[str]:
    """Names of the layers that a plan replaces."""
    ranked = {planned.name for planned in plan if planned.rank is not None}
    return {
        module
        for group in groups
        for site in group.sites
        if site.name in ranked
        for module, _ in site.users
    }


def _inside(name: str, modules: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:n]) in modules for n in range(len(parts)))
