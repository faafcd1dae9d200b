"""Small checkpoints on disk, and what compressing them has to give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

RANK = 0.6


def saved(model: nn.Module, path: Path) -> Path:
    """Write what torch gives for a model into one safetensors file; what is shared once."""
    seen: set[int] = set()
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            state[name] = tensor.detach().contiguous()
        seen.add(id(tensor))
    save_file(state, path)
    return path


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors of a result but for marks, and its structure."""
    if path.is_file():
        with safe_open(path, "pt") as file:
            return load_file(path), json.loads(file.metadata()["skcompress"])["structure"]
    tensors: dict[str, Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        tensors |= {name: tensor for name, tensor in load_file(file).items() if tensor.numel()}
    said = json.loads((path / "skcompress.json").read_text())
    if "structure" not in said:
        said = json.loads((path / "config.json").read_text())["quantization_config"]
    return tensors, said["structure"]


def check_same(path: Path, expected: nn.Module, *, absent: tuple[str, ...] = ()) -> None:
    """The tensors on disk are those of a model, bit for bit; what it shares is there once."""
    tensors, structure = read(path)
    wanted = expected.state_dict()
    resolved = {**tensors, **{new: tensors[old] for new, old in structure["ties"].items()}}
    assert resolved.keys() | set(absent) == wanted.keys() | set(absent)
    for name, tensor in resolved.items():
        assert tensor.dtype == wanted[name].dtype, name
        assert torch.equal(tensor, wanted[name]), name
    assert len(tensors) == len({id(t) for t in expected.state_dict(keep_vars=True).values()})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
