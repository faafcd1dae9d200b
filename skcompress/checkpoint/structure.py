"""What a model says of its own structure, in words of JSON: docs/format.md has every key.

Read off the model alone: how it came about, by which compressors in which order, does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from ..errors import SaveError
from ..layers.kinds import layer_kinds
from ..layers.narrowed import wide_numbers, wide_shapes
from ..layers.reparametrized import computed_names
from ..protocols import Factorized, Factors, Stage
from .contents import Contents

# Settings of torch.nn modules that change nothing of what they compute in eval mode.
_OF_TRAINING = {"p", "dropout", "momentum", "inplace", "sparse", "scale_grad_by_freq"}
# Those of attention are not in its own list.
_UNLISTED = ("num_heads", "head_dim", "kdim", "vdim", "embed_dim", "add_zero_attn")
# What goes with the shapes of tensors, of stand-ins too.
_WIDTHS = ("in_features", "out_features", "in_channels", "out_channels", "groups")


def structure_of(model: nn.Module, contents: Contents) -> dict[str, Any]:
    """Give the structure of a model that holds these tensors."""
    stand_ins: dict[str, Any] = {}
    layers: dict[str, Any] = {}
    for name, module in outermost(model):
        if isinstance(module, Factorized):
            stand_ins[name] = _stand_in(name, module)
        notes = noted(module)
        if notes:
            layers[name] = notes
    modes = {name: module.training for name, module in model.named_modules()}
    alike = len(set(modes.values())) == 1
    return {
        "library": version("skcompress"),
        "model": type(model).__name__,
        "stand_ins": stand_ins,
        "layers": layers,
        "training": model.training if alike else [n for n, trained in modes.items() if trained],
        "frozen": contents.frozen,
        "ties": contents.ties,
        "unsaved": contents.unsaved,
    }


def outermost(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module once, but for those inside stand-ins, which come as wholes."""
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module not in inside:
            yield name, module
            stand_in: Any = module if isinstance(module, Factorized) else None
            inside.update(() if stand_in is None else stand_in.modules())


def _stand_in(name: str, module: Any) -> dict[str, Any]:
    kind = layer_kinds().get(getattr(type(module), "kind", ""))
    if kind is None:
        raise SaveError(
            f"the stand-in {name!r} of class {type(module).__name__} is of no registered kind",
            "install the package of its layer kind, in the entry-point group skcompress.layers",
        )
    slots = {slot: described(factors) for slot, factors in module.factors().items()}
    return {"kind": module.kind, "slots": slots, "own": kind.describe(module)}


def described(factors: Factors) -> list[dict[str, Any]]:
    """Shapes of factors as JSON, one item for each stage."""
    return [
        {"shape": list(stage.shape), "groups": stage.groups, "pivots": stage.pivots,
         "sparse": None if stage.sparse is None else list(stage.sparse)}
        for stage in factors.stages
    ]  # fmt: skip


def stages_from(described: Any) -> tuple[Stage, ...]:
    """Read what `described` wrote; anything else is a ValueError."""
    return tuple(map(_stage, _list_of(dict, described)))


def _stage(item: Mapping[str, Any]) -> Stage:
    groups, pivots, sparse = item["groups"], item["pivots"], item["sparse"]
    if type(groups) is not int or groups < 1:
        raise ValueError(f"groups={groups!r}")
    if pivots not in (None, 0, 1) or type(pivots) is bool:
        raise ValueError(f"pivots={pivots!r}")
    shape = shape_from(item["shape"])
    return Stage(shape, groups, pivots, None if sparse is None else shape_from(sparse))


def shape_from(value: Any) -> tuple[int, ...]:
    """Read a shape; anything else is a ValueError."""
    shape = tuple(_list_of(int, value))
    if len(shape) > 8 or any(type(n) is bool or not 0 <= n < 2**40 for n in shape):
        raise ValueError(f"a shape {value!r}")
    return shape


def _list_of(cls: type, value: Any) -> list[Any]:
    if not isinstance(value, list) or not all(isinstance(item, cls) for item in value):
        raise ValueError(f"{str(value)[:40]!r} where a list of {cls.__name__} should be")
    return value


def noted(module: nn.Module) -> dict[str, Any]:
    """What has to be the same in the model to load into, or has to be done to it."""
    notes: dict[str, Any] = {}
    cls = parametrize.type_before_parametrizations(module)
    if cls.__module__.startswith("torch.nn."):
        notes["class"] = cls.__name__
        names = [*getattr(cls, "__constants__", ()), *_UNLISTED]
        settings = {name: getattr(module, name) for name in names if hasattr(module, name)}
        notes["settings"] = {
            name: _json(value)
            for name, value in settings.items()
            if name not in _OF_TRAINING and _is_setting(value)
        }
    computed = sorted(computed_names(module))
    if computed:
        notes["computed"] = computed
    shapes, numbers = wide_shapes(module), wide_numbers(module)
    if shapes is not None:
        notes["wide"] = {
            name: [list(shape), list(getattr(module, name).shape)] for name, shape in shapes.items()
        }
        widths = {name: getattr(module, name) for name in _WIDTHS if hasattr(module, name)}
        notes["settings"] = {**notes.get("settings", {}), **widths}
    if numbers:
        notes["numbers"] = {name: [was, getattr(module, name)] for name, was in numbers.items()}
    return notes


def _is_setting(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_setting, value))
    return value is None or isinstance(value, bool | int | float | str)


def _json(value: Any) -> Any:
    return [_json(item) for item in value] if isinstance(value, tuple | list) else value
