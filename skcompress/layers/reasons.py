"""Why a module stays as it is, so far as it can be told from the module alone."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from ..protocols import Factorized, LayerKind
from .sparse import SparseTerm

# Bytes; torch does arithmetic in nothing smaller.
_SMALLEST_NUMBER = 2
_NOT_INITIALISED = "not initialised: run one batch through the model first"


def is_opaque(module: nn.Module, inside_factors: bool = False) -> bool:
    """Whether a module stays with all that is inside it."""
    if isinstance(module, torch.jit.ScriptModule):
        return True
    return isinstance(module, Factorized) and not inside_factors


def why_left(module: nn.Module, kind: LayerKind | None, inside_factors: bool = False) -> str | None:
    """Say why a module of this kind, or of none, stays; None if it need not, or owns nothing."""
    if isinstance(module, Factorized) and not inside_factors:
        return "already factorised"
    if isinstance(module, torch.jit.ScriptModule):
        return "compiled by TorchScript: compress the module that it was made from"
    if kind is None:
        return _of_no_kind(module)
    return _values(module) or kind.refusal(module)


def _of_no_kind(module: nn.Module) -> str | None:
    own = {n: p for n, p in module._parameters.items() if p is not None}
    if not own:
        return None
    if isinstance(module, SparseTerm):
        return "a sparse term, of which no zeros are stored"
    if isinstance(module, nn.Bilinear):
        return "a form in two inputs: no factors that are plain layers"
    if any(isinstance(p, UninitializedParameter) for p in own.values()):
        return _NOT_INITIALISED
    if all(p.dim() <= 1 for p in own.values()):
        return "vectors only: nothing to factorise"
    listed = ", ".join(f"{n} {tuple(p.shape)}" for n, p in own.items() if p.dim() > 1)
    return f"parameters used by its own forward, which is not a known layer's: {listed}"


def _values(module: nn.Module) -> str | None:
    parameters = list(module.parameters())
    if any(isinstance(p, UninitializedParameter) for p in parameters):
        return _NOT_INITIALISED
    for p in parameters:
        if not p.dtype.is_floating_point or p.dtype.itemsize < _SMALLEST_NUMBER:
            return f"weights of {p.dtype}: only real numbers of 16 bits or more can be factorised"
        if p.layout is not torch.strided:
            return f"weights of layout {p.layout}: only dense ones can be factorised"
        if p.numel() == 0:
            return "an empty weight"
    return None
