"""Batch normalisation: what it does to the layer before it, folded in."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from ..layers.reparametrized import copied
from .observing import put


@dataclass(frozen=True)
class Normalization:
    """The batch normalisation that alone reads what a layer gives.

    name : of its module
    scale : float64 (out,), what it multiplies each output by
    """

    name: str
    scale: Tensor


def fixed(norm: Any) -> bool:
    """Whether it normalises by statistics of its own, not by those of the batch."""
    return norm.running_mean is not None and norm.running_var is not None


def reads_outputs(layer: nn.Module, output: Tensor, norm: Any) -> bool:
    """Whether the axis that is normalised is that of the layer's outputs."""
    if isinstance(layer, _ConvNd):
        features: Any = layer.out_channels
        in_place = output.dim() == 2 + len(layer.kernel_size)
    else:  # linear ones have them on the last axis
        features = getattr(layer, "out_features", getattr(layer, "nf", None))
        in_place = output.dim() == 2
    return in_place and features == norm.num_features


def scale(norm: Any) -> Tensor:
    """What a batch normalisation in eval mode multiplies each channel by, float64 (channels,)."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    return scale if norm.weight is None else scale * norm.weight.detach().double()


def foldable_norms(model: nn.Module, norms: Mapping[str, Normalization]) -> dict[str, str]:
    """Name the normalisations that can be multiplied into the layers before them, by these.

    norms : that follow layers, as `look` gives them
    """
    layers = {name: model.get_submodule(name) for name in norms}
    users = Counter(id(p) for m in model.modules() for p in m._parameters.values())
    return {
        name: norms[name].name
        for name, layer in layers.items()
        # Where another layer has the same weight, there would be two of it.
        if foldable(layer) and users[id(layer.weight)] == 1
    }


def fold(model: nn.Module, norms: Mapping[str, str]) -> nn.Module:
    """Copy `model` with batch normalisations multiplied into the layers before them.

    norms : name of the normalisation by the name of the layer before it, whose output nobody
        else reads; it becomes an `nn.Identity`. The layer gets a bias where it has none.
    """
    result = copied(model)
    for name, norm_name in norms.items():
        layer, norm = result.get_submodule(name), result.get_submodule(norm_name)
        # In float64: of half precision, a small variance leaves little.
        pair: Any = [copy.deepcopy(module).double().eval() for module in (layer, norm)]
        fused: nn.Module
        if isinstance(layer, nn.Linear):
            fused = fuse_linear_bn_eval(*pair)
        else:
            fused = fuse_conv_bn_eval(pair[0], pair[1], bool(layer.transposed))
        put(result, layer, fused.to(layer.weight.dtype).train(layer.training))  # type: ignore[arg-type]
        put(result, norm, nn.Identity().train(norm.training))
    return result


def foldable(layer: nn.Module) -> bool:
    """Whether torch can multiply a batch normalisation into a layer of this kind."""
    plain = isinstance(layer, nn.Linear | _ConvNd) and "weight" in layer._parameters
    # Of a grouped transposed convolution, one axis of the weight holds only one group's outputs.
    return plain and not (getattr(layer, "transposed", False) and layer.groups > 1)  # type: ignore[operator]
