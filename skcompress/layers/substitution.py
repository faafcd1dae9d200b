"""A copy of a model in which stand-ins take the place of layers, or layers that of stand-ins."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import nn

from ..errors import ModelCopyError
from ..protocols import Factorized, Factors, Memo
from .kinds import kind_of
from .pretrained import settle
from .reparametrized import cached_results, computed_by

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def substitute(model: nn.Module, factors: Mapping[str, Mapping[str, Factors]]) -> nn.Module:
    """Copy `model` with stand-ins for the modules named in `factors`.

    factors : by module name, then by slot name; tensors are `nn.Parameter`s

    The dense weights of replaced layers are never copied. Modules and parameters that
    are shared in `model` are shared in the copy.
    """

    def build(name: str, module: nn.Module, memo: Memo) -> nn.Module | None:
        kind = kind_of(module) if name in factors else None
        return kind and kind.build(module, factors[name], memo)

    result = replace_modules(model, build)
    settle(model, result)
    return result


def densify(model: nn.Module) -> nn.Module:
    """Copy `model` with ordinary layers in place of every stand-in."""

    def build(name: str, module: nn.Module, memo: Memo) -> nn.Module | None:
        return module.to_dense(memo) if isinstance(module, Factorized) else None

    result = replace_modules(model, build)
    settle(model, result)
    return result


def replace_modules(
    model: nn.Module, build: Callable[[str, nn.Module, Memo], nn.Module | None]
) -> nn.Module:
    """Copy `model` with what `build` gives in place of a module, where it gives something.

    build : is given the name of a module, the module, and the memo of the copy under way
    """
    memo: Memo = cached_results(model)
    replaced: list[tuple[nn.Module, nn.Module]] = []
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        replacement = None if module in inside else build(name, module, memo)
        if replacement is not None:
            inside.update(module.modules())
            replaced.append((module, replacement))
    memo.update((id(module), replacement) for module, replacement in replaced)
    try:
        for module, replacement in replaced:
            carry_over(module, replacement, memo)
        result: nn.Module = copy.deepcopy(model, memo)
    except Exception as cause:
        raise ModelCopyError(cause) from cause
    _settle_fast_paths(model, memo)
    return result


def _settle_fast_paths(model: nn.Module, memo: Memo) -> None:
    """Keep torch's fused transformer kernel away from layers with factors inside.

    It reads `.weight` of those layers and would multiply the factors out at every call;
    the ordinary path of the same module calls them.
    """
    for module in model.modules():
        layer = memo.get(id(module))
        if isinstance(module, nn.TransformerEncoderLayer) and isinstance(layer, nn.Module):
            # The switch that torch itself sets where it cannot use the kernel.
            if not fusable(layer):
                layer.activation_relu_or_gelu = 0
            elif not fusable(module):
                layer.activation_relu_or_gelu = _fused_activation(module.activation)


def fusable(layer: nn.Module) -> bool:
    """Whether the kernel finds the weights that it wants to read."""
    linear = isinstance(layer.linear1, nn.Linear) and isinstance(layer.linear2, nn.Linear)
    return linear and isinstance(layer.self_attn, nn.MultiheadAttention)


def _fused_activation(activation: object) -> int:
    """What nn.TransformerEncoderLayer sets its switch to."""
    if activation is F.relu or isinstance(activation, nn.ReLU):
        return 1
    return 2 if activation is F.gelu or isinstance(activation, nn.GELU) else 0


def carry_over(module: nn.Module, replacement: nn.Module, memo: Memo) -> None:
    """Give `replacement` mode, hooks and attributes of the module it stands in for.

    Only once `memo` has every replacement: a hook or an attribute may lead to any module.
    """
    replacement.train(module.training)
    for hooks in _HOOKS:
        for key, hook in getattr(module, hooks).items():
            # The tensors that these compute are what the factors have replaced.
            if computed_by(hook) is None:
                getattr(replacement, hooks)[key] = copy.deepcopy(hook, memo)
    replacement._is_full_backward_hook = module._is_full_backward_hook
    own = module.own if isinstance(module, Factorized) else ()
    for name, value in vars(module).items():
        answered = name in vars(replacement) or hasattr(type(replacement), name)
        if not answered and name not in own:
            vars(replacement)[name] = copy.deepcopy(value, memo)
