"""Networks that take another way on other inputs."""

from __future__ import annotations

import pytest
import torch
from data_cases import error
from models import seeded
from torch import nn

from skcompress import SVDCompressor


class Routes(nn.Module):
    """Long sequences meet one layer twice; short ones go past it."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(24, 24)
        self.twice = nn.Linear(24, 24)

    def forward(self, x):
        if x.shape[1] < 4:
            return self.head(x)
        return self.head(self.twice(x)) + self.head(self.twice(x.flip(-1)))


@pytest.mark.parametrize("lengths", [(6, 3), (3, 6)])
def test_every_call_of_every_route_counts(lengths):
    # Three directions of inputs a call: "twice" meets six. "head" meets nine, and one more:
    # the bias that calls of "twice" bring along.
    def some(length):
        x = torch.zeros(40, length, 24)
        x[..., :3] = torch.randn(40, length, 3)
        return x

    model = seeded(Routes)
    data = seeded(lambda: [some(length) for length in lengths])
    small = SVDCompressor({"twice": 6, "head": 10}).fit_transform(model, data)
    for x in data:
        assert error(model, small, x) < 1e-2
