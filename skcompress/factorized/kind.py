"""What has to be said about a kind of layer so that compressors can work on it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..protocols import Factors

Memo = dict[object, object]

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@dataclass(frozen=True)
class Slot:
    """One weight of a layer, as decompositions and regularizers see it.

    name : what it adds to the layer's name; "" where the layer has one weight
    groups : how many independent weights are stored side by side
    read : gives the weight as (groups, out, in, *kernel), with gradient where it has one
    parameters : what stores it; several where it is parametrized
    part : which part of the parameter it is, where one parameter stores several weights;
        None where it is all of it
    tieable : whether a layer that shares the parameter can share the factors
    """

    name: str
    groups: int
    read: Callable[[], Tensor]
    parameters: tuple[nn.Parameter, ...]
    part: int | None = None
    tieable: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """(groups, out, in, *kernel)."""
        return tuple(self.read().shape)

    @property
    def size(self) -> int:
        """Stored numbers; more than the weight has where it is parametrized."""
        if self.part is not None:
            return prod(self.shape)
        return sum(p.numel() for p in self.parameters)

    @property
    def requires_grad(self) -> bool:
        """Whether the weight is trained."""
        return any(p.requires_grad for p in self.parameters)


class LayerKind(ABC):
    """How the weights of one kind of layer are read, and what stands in for it."""

    name: ClassVar[str]

    @abstractmethod
    def matches(self, module: nn.Module) -> bool:
        """Whether `module` is of this kind, compressible or not."""

    @abstractmethod
    def refusal(self, module: nn.Module) -> str | None:
        """Say why this module cannot be compressed; None if it can."""

    @abstractmethod
    def slots(self, module: nn.Module) -> list[Slot]:
        """List the weights of a module that was not refused."""

    @abstractmethod
    def build(self, module: nn.Module, factors: Mapping[str, Factors], memo: Memo) -> nn.Module:
        """Give the module that stands in for `module`.

        factors : by slot name, tensors that are `nn.Parameter`s; slots that stay dense
            are missing.
        memo : of the `copy.deepcopy` under way; what is taken over from `module` is
            copied with it, so that sharing survives.
        """


class Factorized(ABC):
    """Mixed into every module that stands in for a layer."""

    @abstractmethod
    def to_dense(self, memo: Memo) -> nn.Module:
        """Give an ordinary layer with the same function; `memo` keeps shared parts shared."""


def overrides(module: nn.Module, base: type[nn.Module], *methods: str) -> str | None:
    """Say which of `methods` (default: forward) of `base` the module's class rewrote."""
    for method in methods or ("forward",):
        if getattr(type(module), method) is not getattr(base, method):
            return f"{type(module).__name__} rewrites {method} of {base.__name__}"
    return None


def dense_copy(tensor: Tensor | None, memo: Memo) -> nn.Parameter | None:
    """Copy a parameter through `memo`; None stays None."""
    return None if tensor is None else copy.deepcopy(tensor, memo)


def weight_reader(module: nn.Module, name: str = "weight") -> Callable[[], Tensor]:
    """Give a function that reads the weight in force, without touching the module.

    Under weight_norm, spectral_norm and other parametrizations that is the computed one.
    """
    hook = _reparametrizing_hook(module, name)
    if hook is not None:
        if hasattr(hook, "do_power_iteration"):  # spectral_norm of torch.nn.utils
            hook = copy.copy(hook)
            return lambda: hook.compute_weight(module, do_power_iteration=False)
        return lambda: hook.compute_weight(module)
    if parametrize.is_parametrized(module, name):
        frozen = _FrozenParametrization(module.parametrizations[name])
        return frozen if module.training else lambda: getattr(module, name)
    return lambda: getattr(module, name)


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


def weight_parameters(module: nn.Module, name: str = "weight") -> tuple[nn.Parameter, ...]:
    """List the parameters that store a weight: one, or those behind its parametrization."""
    if parametrize.is_parametrized(module, name):
        return tuple(module.parametrizations[name].parameters())
    stored = (module._parameters.get(name + suffix) for suffix in ("", "_g", "_v", "_orig"))
    return tuple(p for p in stored if p is not None)


def _reparametrizing_hook(module: nn.Module, name: str) -> object | None:
    """Find the hook of the older torch.nn.utils.weight_norm or spectral_norm."""
    for hook in module._forward_pre_hooks.values():
        if hasattr(hook, "compute_weight") and getattr(hook, "name", None) == name:
            return hook
    return None


def carry_over(module: nn.Module, replacement: nn.Module, memo: Memo) -> nn.Module:
    """Give `replacement` the mode and the hooks of the module it stands in for."""
    replacement.train(module.training)
    for hooks in _HOOKS:
        for key, hook in getattr(module, hooks).items():
            # These compute the weight that the factors have replaced.
            if not hasattr(hook, "compute_weight"):
                getattr(replacement, hooks)[key] = copy.deepcopy(hook, memo)
    return replacement
