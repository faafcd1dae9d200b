"""Errors of what layers give, by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from models import random, seeded
from torch import nn

from skcompress.network.batches import batches
from skcompress.statistics.layer_errors import output_errors
from skcompress.testing.untouched import check_untouched, snapshot


class Network(nn.Module):
    """Changes what a layer gives in place, calls one twice, and does not call one at all."""

    def __init__(self):
        super().__init__()
        self.first, self.twice = nn.Linear(5, 6), nn.Linear(6, 6)
        self.memory, self.idle = nn.LSTM(6, 4, batch_first=True), nn.Linear(2, 2)

    def forward(self, x):
        x = self.first(x).relu_()
        x = self.twice(self.twice(x).relu_())
        return self.memory(x)[0]


def networks(dtype=torch.float64):
    original = seeded(Network).to(dtype)
    other = copy.deepcopy(original)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    return original, other


def errors(one, other, x):
    names = ["first", "twice", "memory", "idle", "first"]
    return output_errors(one, other, names, batches("Test", x, one, batch_size=4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_errors_are_those_by_hand(dtype):
    (one, other), x = networks(dtype), random(10, 3, 5, dtype=dtype)
    before = snapshot(one), snapshot(other)
    found = errors(one, other, x)
    check_untouched("output_errors", one, before[0])
    check_untouched("output_errors", other, before[1])
    given = []
    with torch.no_grad():
        for network in (one.double(), other.double()):
            first = network.first(x.double())
            once = network.twice(first.relu())
            again = network.twice(once.relu())
            last = network.memory(again)[0]
            given.append({"first": first, "twice": torch.cat([once, again]), "memory": last})
    tolerance = 1e-10 if dtype is torch.float64 else 1e-5
    assert found == {
        name: pytest.approx(float((y - given[1][name]).norm() / y.norm()), rel=tolerance)
        for name, y in given[0].items()
    }


def test_not_a_number_is_an_error_that_is_not_a_number():
    (one, other), x = networks(), random(6, 3, 5)
    with torch.no_grad():
        other.twice.weight[0, 0] = float("nan")
    found = errors(one, other, x)
    assert found["first"] == pytest.approx(0.1)
    assert found["twice"] != found["twice"]


def test_squares_of_half_precision_do_not_overflow():
    one = nn.Sequential(nn.Linear(4, 4)).half()
    with torch.no_grad():
        one[0].weight.copy_(30000 * torch.eye(4))
        other = copy.deepcopy(one)
        other[0].weight.neg_()
    data = batches("Test", torch.ones(3, 4), one)
    assert output_errors(one, other, ["0"], data)["0"] == pytest.approx(2, rel=1e-3)
