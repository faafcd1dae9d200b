"""From factors and the layer they replace to the module that stands in for it.

One file per kind of layer. The stand-ins are made of plain torch.nn layers and know
nothing of compressors.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import nn

from ..errors import ModelCopyError
from ..protocols import Factors
from .attention import AttentionKind
from .convolution import ConvKind
from .embedding import EmbeddingKind
from .experts import ExpertsKind
from .kind import Factorized, LayerKind, Memo, Slot, carry_over
from .linear import Conv1DKind, LinearKind
from .recurrent import RecurrentKind
from .reparametrized import cached_results

__all__ = ["KINDS", "Factorized", "LayerKind", "Slot", "densify", "kind_of", "substitute"]

KINDS: tuple[LayerKind, ...] = (
    LinearKind(),
    Conv1DKind(),
    ConvKind(),
    EmbeddingKind(),
    AttentionKind(),
    RecurrentKind(),
    ExpertsKind(),
)


def kind_of(module: nn.Module) -> LayerKind | None:
    """Find the kind of a layer; None where it is none that has weights to factorise."""
    return next((kind for kind in KINDS if kind.matches(module)), None)


def substitute(model: nn.Module, factors: Mapping[str, Mapping[str, Factors]]) -> nn.Module:
    """Copy `model` with stand-ins for the modules named in `factors`.

    factors : by module name, then by slot name; tensors are `nn.Parameter`s

    The dense weights of replaced layers are never copied. Modules and parameters that
    are shared in `model` are shared in the copy.
    """

    def build(name: str, module: nn.Module, memo: Memo) -> nn.Module | None:
        kind = kind_of(module) if name in factors else None
        return kind and kind.build(module, factors[name], memo)

    return _copy(model, build)


def densify(model: nn.Module) -> nn.Module:
    """Copy `model` with ordinary layers in place of every stand-in."""

    def build(name: str, module: nn.Module, memo: Memo) -> nn.Module | None:
        return module.to_dense(memo) if isinstance(module, Factorized) else None

    return _copy(model, build)


def _copy(model: nn.Module, build: Callable[[str, nn.Module, Memo], nn.Module | None]) -> nn.Module:
    """Copy `model` with what `build` gives in place of a module, where it gives something."""
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
            if _holds_factors(layer):
                layer.activation_relu_or_gelu = 0
            elif _holds_factors(module):
                layer.activation_relu_or_gelu = _fused_activation(module.activation)


def _holds_factors(module: nn.Module) -> bool:
    return any(isinstance(inner, Factorized) for inner in module.modules())


def _fused_activation(activation: object) -> int:
    """What nn.TransformerEncoderLayer sets its switch to."""
    if activation is F.relu or isinstance(activation, nn.ReLU):
        return 1
    return 2 if activation is F.gelu or isinstance(activation, nn.GELU) else 0
