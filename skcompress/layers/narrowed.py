"""What a layer was before channels were taken out of it, noted on the layer itself.

Whoever builds the layer again, to load it for one, has only the original architecture: these notes
tell a narrowed layer from one of another architecture.
"""

from __future__ import annotations

from typing import Any

from torch import nn

_SHAPES, _NUMBERS = "wide_shapes", "wide_numbers"


def note_shapes(layer: nn.Module) -> None:
    """Note the shapes of a layer's own tensors, before the first channels go."""
    tensors = {**layer._parameters, **layer._buffers}
    shapes = {name: tuple(t.shape) for name, t in tensors.items() if t is not None}
    vars(layer).setdefault(_SHAPES, shapes)


def note_number(module: nn.Module, attribute: str) -> None:
    """Note a number that a module holds, of heads for one, before it follows the channels."""
    vars(module).setdefault(_NUMBERS, {}).setdefault(attribute, getattr(module, attribute))


def wide_shapes(layer: nn.Module) -> dict[str, tuple[int, ...]] | None:
    """Give the shapes of a layer's tensors before, by their names; None where none went."""
    return vars(layer).get(_SHAPES)


def wide_numbers(module: nn.Module) -> dict[str, Any]:
    """Give the numbers that a module held before, by the names of its attributes."""
    found: dict[str, Any] = vars(module).get(_NUMBERS, {})
    return found


def forget(module: nn.Module) -> None:
    """Drop the notes, from a model that nobody builds again."""
    for name in (_SHAPES, _NUMBERS):
        vars(module).pop(name, None)
