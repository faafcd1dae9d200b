"""Values of weights: whether there are any, and whether they are the same as before."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from skcompress.errors import MetaWeightError
from skcompress.fitting.factorizing import fingerprint

from .removing import matrix, mixes


def check_values(model: nn.Module) -> None:
    """Refuse parameters without values, and NaN or infinity among them."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise MetaWeightError(name)
        if parameter.is_floating_point():
            _fingerprint(name, parameter.detach())


def fingerprints(model: nn.Module, names: Iterable[str]) -> dict[str, int]:
    """Numbers that change with the weights of those of these layers that mix channels."""
    layers = {name: model.get_submodule(name) for name in names}
    return {n: _fingerprint(n, matrix(layer)) for n, layer in layers.items() if mixes(layer)}


def _fingerprint(name: str, tensor: Tensor) -> int:
    # numpy, which the checksum goes through, has no bfloat16.
    return fingerprint(name, tensor.to(torch.promote_types(tensor.dtype, torch.float32)))
