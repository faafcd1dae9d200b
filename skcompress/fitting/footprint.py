"""How much memory a result keeps."""

from __future__ import annotations

import sys
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor

_OF_CODE = (type, FunctionType, BuiltinFunctionType, ModuleType)


def n_bytes(value: Any) -> int:
    """Bytes of an object and all that it refers to, each counted once.

    A tensor or an array that is part of a larger one keeps all of it. What others refer to as
    well is counted too.

    >>> import torch
    >>> n_bytes([torch.zeros(1000)[:3]]) // 1000
    4
    """
    total = 0
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, _OF_CODE):
            continue
        seen.add(id(item))
        total += sys.getsizeof(item, 64)
        if isinstance(item, Tensor):
            total += _of_storage(item, seen)
        elif isinstance(item, np.ndarray) and item.base is not None:
            # An array that owns its numbers has them in getsizeof.
            waiting.append(item.base)
        waiting.extend(_inside(item))
    return total


def _of_storage(tensor: Tensor, seen: set[int]) -> int:
    try:
        storage = tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # sparse tensors have none
        return tensor.numel() * tensor.element_size()
    # Tensors have another id than what they share.
    key = hash(("storage", storage.device.type, storage.data_ptr()))
    if tensor.is_meta or key in seen:
        return 0
    seen.add(key)
    return storage.nbytes()


def _inside(item: Any) -> list[Any]:
    found: list[Any] = []
    if isinstance(item, dict):
        found += [*item.keys(), *item.values()]
    elif isinstance(item, list | tuple | set | frozenset):
        found += item
    elif isinstance(item, MethodType):
        found.append(item.__self__)
    found += getattr(item, "__dict__", {}).values()
    for kind in type(item).__mro__:
        slots = vars(kind).get("__slots__", ())
        names = (slots,) if isinstance(slots, str) else slots
        found += [getattr(item, name) for name in names if hasattr(item, name)]
    return found
