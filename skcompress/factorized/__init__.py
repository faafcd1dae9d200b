"""From factors and the layer they replace to the module that stands in for it.

One file per kind of layer. The stand-ins are made of plain torch.nn layers and know
nothing of compressors.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

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
    memo: Memo = {}
    for name, module in dict(model.named_modules()).items():
        if name in factors:
            kind = kind_of(module)
            assert kind is not None
            memo[id(module)] = carry_over(module, kind.build(module, factors[name], memo), memo)
    return _copy(model, memo)


def densify(model: nn.Module) -> nn.Module:
    """Copy `model` with ordinary layers in place of every stand-in."""
    memo: Memo = {}
    inside: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, Factorized) and module not in inside:
            inside.update(module.modules())
            memo[id(module)] = carry_over(module, module.to_dense(memo), memo)
    return _copy(model, memo)


def _copy(model: nn.Module, memo: Memo) -> nn.Module:
    try:
        result = copy.deepcopy(model, memo)
    except Exception as cause:
        raise ModelCopyError(cause) from cause
    _settle_fast_paths(result)
    return result


def _settle_fast_paths(model: nn.Module) -> None:
    """Keep torch's fused transformer kernel away from layers with factors inside.

    It reads `.weight` of those layers and would multiply the factors out at every call;
    the ordinary path of the same module calls them.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and any(
            isinstance(inner, Factorized) for inner in module.modules()
        ):
            # The switch that torch itself sets where it cannot use the kernel.
            module.activation_relu_or_gelu = 0
