"""What the built-in kinds ask of a layer that they take over."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import Tensor, nn

from ..protocols import Memo


def overrides(module: nn.Module, base: type[nn.Module], *methods: str) -> str | None:
    """Say which of `methods` (default: forward) of `base` the module or its class rewrote."""
    for method in methods or ("forward",):
        rewritten = getattr(type(module), method) is not getattr(base, method)
        if rewritten or method in vars(module):
            return f"{type(module).__name__} rewrites {method} of {base.__name__}"
    return None


def dense_copy(tensor: Tensor | None, memo: Memo) -> nn.Parameter | None:
    """Copy a parameter through `memo`; None stays None."""
    return None if tensor is None else copy.deepcopy(tensor, memo)


def matrix_reader(parameter: Tensor) -> Callable[[], Tensor]:
    """Give a function that reads a matrix as a weight (1, out, in)."""
    return lambda: parameter[None]
