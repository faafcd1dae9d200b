"""Random numbers: what every other criterion has to beat."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from sklearn.utils import check_random_state
from torch import Tensor

from ..protocols import Criterion


class Random(Criterion):
    """Every number matters as much as a draw from [0, 1).

    random_state : int, RandomState or None. With an int the same weight has the same scores every
        time, and weights of the same shape but other values have others.

    >>> import torch
    >>> Random(random_state=0).scores(torch.ones(2, 3)).shape
    torch.Size([2, 3])
    """

    def __init__(self, random_state: Any = None):
        self.random_state = random_state

    def scores(self, weight: Tensor) -> Tensor:
        # Without a seed: a criterion that a pruner uses has one.
        seed = 0 if self.random_state is None else self.random_state
        if not isinstance(seed, int):
            seed = int(check_random_state(seed).randint(2**31 - 1))
        some = weight.reshape(-1)[:64].double().cpu().numpy().tobytes()
        generator = torch.Generator().manual_seed(zlib.crc32(some, seed & 0xFFFFFFFF))
        return torch.rand(weight.shape, generator=generator).to(weight)
