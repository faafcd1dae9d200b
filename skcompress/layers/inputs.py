"""The arguments of one call of a layer by their names, for what a kind says of its inputs."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from ..protocols import Inputs, Lookups

__all__ = ["Inputs", "Lookups", "arguments"]


def arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call of `module` by their names in its forward, defaults included."""
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)
