"""What arguments of commands stand for: networks, data, compressors."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer
from safetensors.torch import load_file
from torch import nn

from .. import registry
from ..compressors.base import FactorizingCompressor
from ..compressors.low_rank import LowRankCompressor
from ..errors.base import suggestion
from ..network.weights import check_model


def named_object(text: str, option: str) -> Any:
    """Import what `module:name` names; modules of the working directory are found too."""
    module, _, name = text.partition(":")
    if not (module and name):
        raise typer.BadParameter(f"{text!r} is not of the form module:name", param_hint=option)
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module)
    except ImportError as cause:
        raise typer.BadParameter(f"cannot import {module!r}: {cause}", param_hint=option) from cause
    for part in name.split("."):
        if not hasattr(found, part):
            hint = suggestion(part, [n for n in vars(found) if not n.startswith("_")])
            raise typer.BadParameter(f"{module!r} has no {part!r}; {hint}", param_hint=option)
        found = getattr(found, part)
    return found


def factory(text: str | None, option: str) -> Callable[[], Any] | None:
    """The function that an option names; None for none."""
    if text is None:
        return None
    found = named_object(text, option)
    if not callable(found):
        raise typer.BadParameter(f"{text!r} cannot be called", param_hint=option)
    return found  # type: ignore[no-any-return]


def is_path(source: str) -> bool:
    """Whether an argument is the path of a checkpoint, not `module:factory`."""
    return Path(source).exists() or ":" not in source


def loaded(source: str, architecture: Callable[[], Any] | None) -> nn.Module:
    """Give a model with its values.

    source : `module:factory`, a folder of transformers, or a .safetensors file of the tensors of
        `architecture`
    """
    if not is_path(source):
        return _built(source, factory(source, "SOURCE"), "SOURCE").eval()
    path = Path(source)
    if architecture is not None:
        model = _built("--model", architecture, "--model")
        try:
            model.load_state_dict(load_file(path))
        except RuntimeError as cause:
            raise typer.BadParameter(str(cause), param_hint="--model") from cause
        return model.eval()
    if not (path / "config.json").exists():
        raise typer.BadParameter(
            f"{source!r} has no config.json that says what network it is: give --model "
            "module:factory", param_hint="SOURCE",
        )  # fmt: skip
    return _of_transformers(path)


def _built(name: str, build: Any, option: str) -> nn.Module:
    try:
        made = build()
    except Exception as cause:
        said = f"{name} raised {type(cause).__name__}: {cause}"
        raise typer.BadParameter(said, param_hint=option) from cause
    return check_model(name, made)


def _of_transformers(path: Path) -> nn.Module:
    from ..checkpoint.streaming_architecture import transformers_class

    cls = transformers_class(path)
    return cls.from_pretrained(str(path), dtype="auto").eval()  # type: ignore[no-any-return]


def data_of(path: Path | None) -> Any:
    """Read inputs: one tensor, or keyword inputs by name. Nothing in the file is run."""
    if path is None:
        return None
    import torch

    if path.suffix == ".npy":
        return torch.from_numpy(np.load(path, allow_pickle=False))
    if path.suffix == ".npz":
        tensors = {n: torch.from_numpy(a) for n, a in np.load(path, allow_pickle=False).items()}
    elif path.suffix == ".safetensors":
        tensors = load_file(path)
    else:
        raise typer.BadParameter(
            f"{path.name!r} is not a .safetensors, .npz or .npy file", param_hint="--data"
        )
    # One tensor is the input itself; of several each is a keyword of the forward.
    return next(iter(tensors.values())) if len(tensors) == 1 else [tensors]


def rank_of(text: str) -> float | int | str:
    """Read a rank: 0.3 is a fraction, 8 is that rank everywhere, 'auto' a threshold."""
    if text == "auto":
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise typer.BadParameter(
        f"{text!r} is no fraction such as 0.3, no whole number and not 'auto'", param_hint="--rank"
    )


def compressor_of(method: str, settings: Sequence[str], **parameters: Any) -> FactorizingCompressor:
    """Make a low-rank compressor of its name, or of that of a decomposition.

    settings : further parameters, as NAME=VALUE with values of JSON
    """
    found: Any = None
    if method in registry.names("compressors"):
        found = registry.resolve("compressors", method)
    low_rank = isinstance(found, type) and issubclass(found, FactorizingCompressor)
    known = [*registry.names("decompositions"), "svd", "tucker"]
    if not low_rank and method not in known:
        raise typer.BadParameter(
            f"no low-rank method is named {method!r}; {suggestion(method, sorted(set(known)))}",
            param_hint="--method",
        )
    compressor: Any = found() if low_rank else LowRankCompressor(method)
    allowed = compressor.get_params()
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or name not in allowed:
            owner, hint = type(compressor).__name__, suggestion(name, sorted(allowed))
            raise typer.BadParameter(
                f"{setting!r} is no NAME=VALUE of a parameter of {owner}; {hint}",
                param_hint="--set",
            )
        parameters[name] = _value(value)
    return compressor.set_params(**parameters)  # type: ignore[no-any-return]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
