"""How many numbers a model stores."""

from __future__ import annotations

from torch import nn

from ..metrics import count_parameters
from ..protocols import Bench, Objective


class NParameters(Objective):
    """Stored parameters, shared ones once: `skcompress.count_parameters`."""

    counted = True
    name = "n_parameters"
    label = "parameters"

    def measure(self, model: nn.Module, bench: Bench) -> int:
        return count_parameters(model)
