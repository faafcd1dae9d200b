"""A model to load into: its modules, without the numbers that a file brings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from ..errors import FactoryError
from ..layers.reparametrized import computed_names, copied
from ..protocols import Factorized


def skeleton_of(source: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """Give a new model whose parameters and saved buffers are on the meta device.

    What no file has (other buffers, tensors that modules hold as attributes) has its values. A
    function is called on the meta device, and once more with values where that cannot do; the
    random state stays as it is.
    """
    if isinstance(source, nn.Module):
        return _checked(source, copied(source, _emptied(source)))
    if not callable(source):
        raise FactoryError(source)
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                model = source()
            if not isinstance(model, nn.Module) or _without_values(model) is None:
                return _checked(source, model)
        except FactoryError:
            raise
        except Exception:
            pass
        try:
            model = source()
        except Exception as cause:
            raise FactoryError(source, cause) from cause
    return _checked(source, copied(model, _emptied(model)) if _is_model(model) else model)


def _is_model(model: Any) -> bool:
    return isinstance(model, nn.Module)


def _checked(source: object, model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise FactoryError(model)
    missing = _without_values(model)
    if missing is not None:
        cause = ValueError(f"{missing!r} has no values, and no file has them: give a function")
        raise FactoryError(source, cause)
    if any(isinstance(module, Factorized) for module in model.modules()):
        raise FactoryError(source, ValueError("it is compressed: the original is wanted"))
    return model


def _saved(module: nn.Module) -> Iterator[Tensor]:
    """The tensors of one module that a file brings."""
    yield from (p for p in module._parameters.values() if p is not None)
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            yield buffer


def _emptied(model: nn.Module) -> dict[int, Tensor]:
    """What stands for the tensors that a file brings, as a memo for copying."""
    memo: dict[int, Tensor] = {}
    for module in model.modules():
        for tensor in _saved(module):
            if is_lazy(tensor):
                continue
            empty: Tensor = tensor.detach().to("meta")
            if isinstance(tensor, nn.Parameter):
                empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
            memo[id(tensor)] = empty
    return memo


def _without_values(model: nn.Module) -> str | None:
    """Name a tensor on the meta device that no file brings, if there is one."""
    for prefix, module in model.named_modules():
        brought = {id(tensor) for tensor in _saved(module)}
        computed = computed_names(module)
        held = {**module._buffers, **vars(module)}
        for name, value in held.items():
            if name in ("_parameters", "_buffers", "_modules", *computed):
                continue
            for leaf in tree_leaves(value):
                if isinstance(leaf, Tensor) and leaf.is_meta and id(leaf) not in brought:
                    return f"{prefix}.{name}".lstrip(".")
    return None
