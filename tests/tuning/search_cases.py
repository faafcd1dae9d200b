"""A small network, and searches that take a fraction of a second."""

from __future__ import annotations

from typing import Any

import torch
from models import random, seeded
from torch import Tensor, nn

from skcompress import CompressionSearch, SVDCompressor
from skcompress.spaces import FloatRange

INPUTS = random(40, 16, dtype=torch.float32)


def network(seed: int = 0) -> nn.Module:
    return seeded(
        lambda: nn.Sequential(
            nn.Linear(16, 24), nn.ReLU(), nn.Dropout(0.5), nn.Linear(24, 16), nn.Linear(16, 3)
        ),
        seed,
    )


MODEL = network()
with torch.no_grad():
    OUTPUTS: Tensor = network().eval()(INPUTS)


@torch.no_grad()
def closeness(model: nn.Module) -> float:
    """How close the outputs are to those of the network above; 0 at best."""
    return -float((model(INPUTS) - OUTPUTS).square().mean())


def search(**settings: Any) -> CompressionSearch:
    """Of the rank alone, where it can be reached, unless another `space` is given."""
    given = {
        "estimator": SVDCompressor(),
        "space": {"rank": FloatRange(0.2, 0.95)},
        "scoring": closeness,
        "n_trials": 6,
        "random_state": 0,
        **settings,
    }
    return CompressionSearch(**given)
