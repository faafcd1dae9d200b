"""What has to be said about a kind of layer so that compressors can work on it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from torch import Tensor, nn

from ..protocols import Factors
from .inputs import Inputs, Lookups
from .reparametrized import computed_by

Memo = dict[Any, Any]

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
    """How the weights of one kind of layer are read, and what stands in for it.

    takes_pivots : whether `build` takes factors of which a part is left out
    takes_sparse : whether it takes a sparse term
    """

    name: ClassVar[str]
    # Why its factors save no FLOPs that can be told beforehand; None where they do.
    saves_no_flops: ClassVar[str | None] = None
    takes_pivots: ClassVar[bool] = False
    takes_sparse: ClassVar[bool] = False

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

    def stages(self, stand_in: nn.Module, slot: str) -> list[str]:
        """Name the modules of a stand-in that apply the stages of a slot, in their order."""
        chain = stand_in.get_submodule(slot)
        return [f"{slot}.{name}".lstrip(".") for name, _ in chain.named_children()]

    @abstractmethod
    def inputs(
        self, module: nn.Module, wanted: Collection[str], call: Mapping[str, Any]
    ) -> Iterator[tuple[str, Inputs | Lookups]]:
        """Yield what weights of a module, in eval mode, are applied to in one call of it.

        wanted : names of the slots that are asked for; others may be left out
        call : what its forward receives, by name of the argument
        """

    def outputs(self, module: nn.Module, output: Tensor) -> dict[str, Inputs]:
        """Cut a tensor like the module's output into columns y = W x of its weights.

        output : what a call of the module gives, but for a bias, or a gradient there

        By slot name, laid out as `inputs` are: (groups, out, positions), at the same
        positions. A weight whose own output never leaves the module is missing, as here.
        """
        return {}


class Factorized(ABC):
    """Mixed into every module that stands in for a layer.

    own : attributes that the layer it stands in for does not have
    """

    own: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def to_dense(self, memo: Memo) -> nn.Module:
        """Give an ordinary layer with the same function; `memo` keeps shared parts shared."""


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
