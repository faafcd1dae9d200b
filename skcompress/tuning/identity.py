"""What tells the network of one study from that of another, on all machines alike."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor, nn

from ..metrics import count_parameters


def described(model: nn.Module) -> dict[str, Any]:
    """Give the number of a model's parameters and a checksum of all its values; JSON-able."""
    found = 0
    for name, value in model.state_dict().items():
        found = zlib.crc32(name.encode(), found)
        if isinstance(value, Tensor):
            found = zlib.crc32(_octets(value), found)
    return {"n_parameters": count_parameters(model), "checksum": found}


def _octets(tensor: Tensor) -> Any:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_nested:
        return b""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
