"""How errors of recurrent weights come back through the states decides what they are given."""

from __future__ import annotations

import pytest
import torch
from models import random, seeded
from torch import nn

from skcompress import SVDCompressor


class Reader(nn.Module):
    """A recurrent layer with a given gain of its states, and a head that reads the last one."""

    def __init__(self, gain: float):
        super().__init__()
        self.layer = nn.RNN(8, 16, batch_first=True)
        self.head = nn.Linear(16, 16)
        with torch.no_grad():
            self.layer.weight_ih_l0.mul_(0.1)
            matrix = self.layer.weight_hh_l0
            # Turns states by a matrix with a decaying spectrum, as large as the gain.
            left, _, right = torch.linalg.svd(matrix)
            matrix.copy_(gain * left @ torch.diag(0.9 ** torch.arange(16.0)) @ right)

    def forward(self, x):
        return self.head(self.layer(x)[0][:, -1])


def kept(gain: float, **settings) -> float:
    """Numbers of the fed-back weight that a plan keeps, as a share."""
    model = seeded(lambda: Reader(gain)).eval()
    x = random(96, 30, 8, seed=1).float()
    compressor = SVDCompressor(rank=0.7, pivot=True, **settings).fit(model, x)
    row = compressor.plan_["layer.weight_hh_l0"]
    return row.after / row.before


def test_what_comes_back_for_longer_is_kept_better():
    assert kept(1.2) > kept(0.1)


def test_the_model_stays_as_it_is_and_plans_are_the_same_twice():
    model = seeded(lambda: Reader(1.0)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = random(96, 30, 8, seed=1).float()
    plans = [SVDCompressor(rank=0.7).fit(model, x).plan_ for _ in range(2)]
    assert plans[0] == plans[1]
    assert model.training
    assert not model.layer._forward_pre_hooks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("x", [torch.zeros(20, 5, 8), torch.ones(2, 1, 8)], ids=["zeros", "one"])
def test_inputs_that_say_nothing(x):
    model = seeded(lambda: Reader(1.0)).eval()
    compressor = SVDCompressor(rank=0.7)
    small = compressor.fit_transform(model, x)
    with torch.no_grad():
        assert small(x).isfinite().all()
