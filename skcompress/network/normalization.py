"""Batch normalisation: what it does to the layer before it, folded in."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from ..layers.reparametrized import copied
from .batches import Batches, device_of
from .observing import forward, observer, put, same_randomness
from .readers import Readers, tensors_in


@dataclass(frozen=True)
class Normalization:
    """The batch normalisation that alone reads what a layer gives.

    name : of its module
    scale : float64 (out,), what it multiplies each output by
    """

    name: str
    scale: Tensor


def following(model: nn.Module, names: Iterable[str], data: Batches) -> dict[str, Normalization]:
    """Find, for each named layer, the batch normalisation that reads its output and nobody else.

    Observed on the first batch. Both have to be called once, with statistics of their own to
    normalise by.
    """
    observed = observer(model)
    norms = [(n, m) for n, m in observed.named_modules() if isinstance(m, _BatchNorm) and fixed(m)]
    if not norms:
        return {}
    readers = Readers()
    outputs: dict[str, list[Tensor]] = {name: [] for name in names}
    inputs: dict[str, list[Tensor]] = {name: [] for name, _ in norms}

    def note_output(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs[name].append(output)
                readers.watch(output)

        return hook

    def note_input(name: str) -> Any:
        return lambda module, args: inputs[name].extend(args[:1])

    for name in outputs:
        observed.get_submodule(name).register_forward_hook(note_output(name))
    for name, norm in norms:
        norm.register_forward_pre_hook(note_input(name))
    with same_randomness(device_of(observed)), torch.no_grad(), readers:
        result = forward(observed, 0, next(iter(data)), data.owner)
    readers.counts.update(map(id, tensors_in(result)))  # what is given back is read by the caller
    reader = {id(x[0]): name for name, x in inputs.items() if len(x) == 1}
    found = {}
    for name, given in outputs.items():
        norm_name = reader.get(id(given[0])) if len(given) == 1 else None
        if norm_name is not None and readers.counts[id(given[0])] == 1:
            module = observed.get_submodule(norm_name)
            if _by_output(observed.get_submodule(name), given[0], module):
                found[name] = Normalization(norm_name, scale(module))
    return found


def fixed(norm: Any) -> bool:
    """Whether it normalises by statistics of its own, not by those of the batch."""
    return norm.running_mean is not None and norm.running_var is not None


def _by_output(layer: nn.Module, output: Tensor, norm: Any) -> bool:
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
