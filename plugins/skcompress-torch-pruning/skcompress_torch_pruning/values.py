"""Values of weights: whether there are any, and whether they are finite."""

from __future__ import annotations

import torch
from torch import nn

from skcompress.building import fingerprint
from skcompress.errors import MetaWeightError


def check_values(model: nn.Module) -> None:
    """Refuse parameters without values, and NaN or infinity among them."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise MetaWeightError(name)
        if parameter.is_floating_point():
            # numpy, which the checksum goes through, has no bfloat16.
            wide = torch.promote_types(parameter.dtype, torch.float32)
            fingerprint(name, parameter.detach().to(wide))
