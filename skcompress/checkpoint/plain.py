"""A compressed model as modules of torch.nn alone, for places where skcompress is not installed."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import ModelTypeError, PlainError
from ..layers import replace_modules
from ..layers.narrowed import forget
from ..layers.pretrained import settle
from ..layers.substitution import fusable
from ..protocols import Factorized, Memo


def to_plain(model: nn.Module, *, dense: bool = False) -> nn.Module:
    """Copy a model with torch.nn modules in place of the stand-ins.

    dense : whether stand-ins for which there are none are multiplied out; otherwise they are an
        error. They take as many numbers as before the compression then.

    The copy computes the same function, and its pickle and TorchScript need no skcompress; modules
    of the user's own stay. Chains of linear layers and convolutions become `nn.Sequential`s, which
    do not answer `weight` or `in_features`; what a pivot leaves out of a factor is written into it;
    factors that an embedding shares with an output layer become two copies.

    Raises
    ------
    PlainError : attention, recurrent layers, experts and sparse terms, by their names and with the
        reason, unless `dense`

    >>> from skcompress import SVDCompressor
    >>> model = torch.nn.Sequential(torch.nn.Linear(30, 30))
    >>> to_plain(SVDCompressor(rank=4).fit_transform(model))
    Sequential(
      (0): Sequential(
        (0): Linear(in_features=30, out_features=4, bias=False)
        (1): Linear(in_features=4, out_features=30, bias=True)
      )
    )
    """
    if not isinstance(model, nn.Module):
        raise ModelTypeError("to_plain", model)
    reasons: dict[str, str] = {}

    def build(name: str, module: nn.Module, memo: Memo) -> nn.Module | None:
        if not isinstance(module, Factorized):
            return None
        made: Any = module.to_plain(memo)
        if isinstance(made, nn.Module):
            return made
        if not dense:
            reasons[name] = made
        return module.to_dense(memo)

    result = replace_modules(model, build)
    if reasons:
        raise PlainError(reasons)
    settle(model, result)
    for module in result.modules():
        forget(module)
        if isinstance(module, nn.TransformerEncoder) and not fusable(module.layers[0]):
            # It would look for the weights of the first layer, to hand them to a fused kernel.
            module.enable_nested_tensor = module.use_nested_tensor = False
    return result
