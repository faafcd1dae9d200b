"""How errors of recurrent weights come back through the states decides what they are given."""

from __future__ import annotations

import pytest
import torch
from models import random, seeded
from torch import nn

from skcompress import SVDCompressor
from skcompress.compressors import base
from skcompress.fitting.through_time import amplifications


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


def times(monkeypatch, gain: float) -> dict[str, float]:
    """What a fit finds that errors of weights are multiplied by."""
    found: dict[str, float] = {}

    def noted(*args):
        found.update(amplifications(*args))
        return found

    monkeypatch.setattr(base, "amplifications", noted)
    model = seeded(lambda: Reader(gain)).eval()
    SVDCompressor(rank=0.7).fit(model, random(96, 30, 8, seed=1).float())
    return found


def test_errors_come_back_as_often_as_states_do(monkeypatch):
    strong, weak = times(monkeypatch, 1.2), times(monkeypatch, 0.1)
    assert set(strong) == {"layer.weight_ih_l0", "layer.weight_hh_l0"}
    # Where states hardly come back, hardly any of the error of their weight is in them.
    assert strong["layer.weight_hh_l0"] > 5 * weak["layer.weight_hh_l0"]


def test_budgets_follow(monkeypatch):
    model = seeded(lambda: Reader(1.0)).eval()
    x = random(96, 30, 8, seed=1).float()

    def kept(times: float) -> int:
        monkeypatch.setattr(base, "amplifications", lambda *_: {"layer.weight_hh_l0": times})
        return SVDCompressor(rank=0.6, pivot=True).fit(model, x).plan_["layer.weight_hh_l0"].after

    assert kept(0.01) < kept(100.0)


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
