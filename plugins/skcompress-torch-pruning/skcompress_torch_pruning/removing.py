"""Channels taken out of layers for good, by torch-pruning's functions for each kind of layer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch_pruning import ops
from torch_pruning.pruner.function import PrunerBox

from skcompress.building import kind_of, note_number, note_shapes

from .groups import Removal, Resize

# Kinds of layers that mix channels, and that hand each one on by itself. From other kinds single
# channels cannot be taken: a normalisation over channels changes what is left of them.
MIXING = (ops.OPTYPE.CONV, ops.OPTYPE.LINEAR)
PASSING = (ops.OPTYPE.DEPTHWISE_CONV, ops.OPTYPE.BN, ops.OPTYPE.PRELU, ops.OPTYPE.IN)


def mixes(layer: nn.Module) -> bool:
    """Whether every output of a layer is made of many inputs: linear layers, convolutions."""
    return ops.module2type(layer) in MIXING


def transforms(layer: nn.Module) -> bool:
    """Whether a layer has a weight for its inputs: one that mixes, or a depthwise convolution."""
    return ops.module2type(layer) in (*MIXING, ops.OPTYPE.DEPTHWISE_CONV)


def remove_(
    model: nn.Module, gone: Removal, resized: Iterable[tuple[Resize, int]] = ()
) -> nn.Module:
    """Remove channels in place, and give the model back.

    gone : sorted channels of each layer
    resized : numbers that modules hold, with how many units stay
    """
    for name, (outputs, inputs) in gone.items():
        layer = model.get_submodule(name)
        # Found once: a grouped convolution that has lost some outputs may look depthwise.
        remover = PrunerBox[ops.module2type(layer)]
        trained = {n: p.requires_grad for n, p in layer.named_parameters(recurse=False)}
        note_shapes(layer)
        with torch.no_grad():
            if inputs:
                remover.prune_in_channels(layer, inputs)
            if outputs:
                remover.prune_out_channels(layer, outputs)
        # The parameters that torch-pruning makes are trained, whatever the old ones were.
        for n, parameter in layer.named_parameters(recurse=False):
            parameter.requires_grad_(trained[n])
    for resize, n_units in resized:
        module = model.get_submodule(resize.module)
        note_number(module, resize.attribute)
        setattr(module, resize.attribute, resize.per_unit * n_units)
    return model


def matrix(layer: nn.Module) -> Tensor:
    """Weight of a layer that mixes, as (groups, out, in, *kernel); a view, without gradient."""
    found = kind_of(layer)
    assert found is not None
    (slot,) = found.slots(layer)
    return slot.read().detach()


def columns(weight: Tensor, channels: Iterable[int]) -> tuple[Tensor, Tensor]:
    """Where input channels of a weight (groups, out, in, *kernel) are: group, and place in it."""
    index = torch.tensor(list(channels), dtype=torch.int64, device=weight.device)
    return index // weight.shape[2], index % weight.shape[2]


@torch.no_grad()
def unread_(model: nn.Module, gone: Removal) -> nn.Module:
    """Let every layer that mixes these channels multiply them by zero, in place; all else stays."""
    for name, (_, inputs) in gone.items():
        layer = model.get_submodule(name)
        if inputs and mixes(layer):
            weight = matrix(layer)
            groups, places = columns(weight, inputs)
            weight[groups, :, places] = 0
    return model
