"""Weights that torch computes from other tensors: norms, parametrizations, pruning masks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from ..errors import ModelCopyError

# What the hooks of torch.nn.utils store beside a weight that they compute.
_SUFFIXES = ("_g", "_v", "_u", "_orig", "_mask")


def computed_by(hook: object) -> str | None:
    """Name of the tensor that a forward pre-hook computes before every call, if any.

    That is the older weight_norm and spectral_norm of torch.nn.utils, code written after
    their example, and pruning.
    """
    if isinstance(hook, prune.BasePruningMethod):
        return hook._tensor_name
    return getattr(hook, "name", None) if hasattr(hook, "compute_weight") else None


def computed_names(module: nn.Module) -> list[str]:
    """Tensors of `module` that are computed from others."""
    names = list(module.parametrizations) if parametrize.is_parametrized(module) else []
    hooks = module._forward_pre_hooks.values()
    return names + [name for hook in hooks if (name := computed_by(hook)) is not None]


def holds_more(module: nn.Module, expected: Iterable[str]) -> str | None:
    """Say what a module holds besides what is expected of its kind."""
    held = (*module._parameters, *module._buffers, *module._modules)
    further = sorted(set(held).difference(expected))
    return f"holds more than layers of its kind: {', '.join(further)}" if further else None


def storage_refusal(module: nn.Module) -> str | None:
    """Say why the weight and bias of a layer, or what else it holds, cannot be taken over."""
    if "bias" in computed_names(module):
        return "its bias is computed from other parameters"
    if not weight_parameters(module):
        return "its weight is not a parameter, nor computed in a way that torch has"
    if getattr(module, "bias", None) is not module._parameters.get("bias"):
        return "its bias is not a parameter"
    stored = ("weight" + suffix for suffix in ("", *_SUFFIXES))
    return holds_more(module, ("bias", "parametrizations", *stored))


def weight_parameters(module: nn.Module) -> tuple[nn.Parameter, ...]:
    """List the parameters that store a weight: one, or those it is computed from."""
    if parametrize.is_parametrized(module, "weight"):
        return tuple(module.parametrizations["weight"].parameters())
    suffixes = ("",) if _hook(module) is None else _SUFFIXES
    stored = (module._parameters.get("weight" + suffix) for suffix in suffixes)
    return tuple(p for p in stored if p is not None)


def weight_reader(module: nn.Module) -> Callable[[], Tensor]:
    """Give a function that reads the weight in force, without touching the module."""
    if parametrize.is_parametrized(module, "weight"):
        return _FrozenParametrization(module.parametrizations["weight"])
    hook = _hook(module)
    if isinstance(hook, prune.BasePruningMethod):
        return lambda: hook.apply_mask(module)
    if hasattr(hook, "n_power_iterations"):  # spectral_norm: the others have no such switch
        return lambda: hook.compute_weight(module, do_power_iteration=False)
    if hook is not None:
        return lambda: hook.compute_weight(module)  # type: ignore[attr-defined]
    return lambda: module.weight  # type: ignore[return-value]


def _hook(module: nn.Module) -> object | None:
    hooks = module._forward_pre_hooks.values()
    return next((hook for hook in hooks if computed_by(hook) == "weight"), None)


class _FrozenParametrization:
    """Evaluate a parametrization without its training-time side effects.

    The spectral norm of a module in training mode refines its vectors at every read.
    """

    def __init__(self, chain: nn.Module):
        self._chain = chain

    def __call__(self) -> Tensor:
        modes = {m: m.training for m in self._chain.modules()}
        try:
            self._chain.eval()
            return self._chain()
        finally:
            for module, training in modes.items():
                module.training = training


def cached_results(model: nn.Module) -> dict[object, object]:
    """Copy the tensors with a history that modules hold, as a memo for `copy.deepcopy`.

    torch refuses to deep-copy these. The hooks above keep the weight they computed last,
    and compute it anew at the next call.
    """
    return {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }


def copied(model: nn.Module, memo: Mapping[Any, Any] | None = None) -> nn.Module:
    """Copy a model, with values of its own.

    memo : what stands for some of its objects, as for `copy.deepcopy`

    Whatever keeps it from being copied is a `ModelCopyError`.
    """
    known: dict[Any, Any] = cached_results(model)
    known.update(memo or {})
    try:
        return copy.deepcopy(model, known)
    except Exception as cause:
        raise ModelCopyError(cause) from cause


def make_plain(module: nn.Module) -> None:
    """Store the weight of a layer, in place, as the parameter `weight` with its present values."""
    if computed_names(module) == []:
        return
    parameters = weight_parameters(module)
    value = weight_reader(module)().detach().clone()
    hook = _hook(module)
    if hook is None:
        with torch.no_grad():
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        del module.weight
    else:
        for held in (module._forward_pre_hooks, module._state_dict_hooks,
                     module._load_state_dict_pre_hooks):  # fmt: skip
            for key, found in list(held.items()):
                # Those that translate old files point to the hook that they go with.
                if found is hook or getattr(found, "fn", None) is hook:
                    del held[key]
        for suffix in _SUFFIXES:
            module._parameters.pop("weight" + suffix, None)
            module._buffers.pop("weight" + suffix, None)
        module.__dict__.pop("weight", None)
    trained = any(p.requires_grad for p in parameters)
    module.register_parameter("weight", nn.Parameter(value, requires_grad=trained))
