"""Moments of windows along one axis, by lags: those of the windows themselves."""

from __future__ import annotations

import pytest
import torch
from models import seeded
from statistics_cases import statistics
from torch import nn

from skcompress.statistics import lagged
from skcompress.statistics.lagged import LagSum, Signals

LAYERS = {
    "plain": (lambda: nn.Conv1d(3, 2, 9), (6, 3, 60)),
    "padded and dilated": (lambda: nn.Conv1d(2, 2, 10, padding=7, dilation=3), (5, 2, 50)),
    "strides that fit the dilation": (lambda: nn.Conv1d(2, 2, 8, stride=2, dilation=4), (7, 2, 70)),
    "strides that do not": (lambda: nn.Conv1d(2, 2, 8, stride=2), (7, 2, 70)),
    "groups": (lambda: nn.Conv1d(4, 6, 8, groups=2), (6, 4, 40)),
    "one long axis of two": (lambda: nn.Conv2d(2, 2, (1, 8), padding=(1, 2)), (4, 2, 5, 20)),
    "the other": (lambda: nn.Conv2d(2, 2, (9, 1), dilation=(2, 1)), (4, 2, 30, 3)),
    "two long axes": (lambda: nn.Conv2d(1, 2, (9, 2)), (4, 1, 20, 6)),
    "reflected": (lambda: nn.Conv1d(2, 2, 9, padding=4, padding_mode="reflect"), (6, 2, 30)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_they_are_those_of_the_windows(name, monkeypatch):
    make, shape = LAYERS[name]
    layer = seeded(make)
    x = 3 + seeded(lambda: torch.randn(shape).cumsum(-1)) / 4
    used = []
    less = Signals.less
    monkeypatch.setattr(Signals, "less", lambda *args: used.append(1) or less(*args))
    found = statistics(layer, [x[:2], x[2:]])["(model)"].moments
    assert bool(used) == (name not in ("strides that do not", "two long axes"))
    monkeypatch.setattr(lagged, "_TAPS", 1000)
    expected = statistics(layer, [x[:2], x[2:]])["(model)"].moments
    scale = float(expected.covariance.diagonal(dim1=1, dim2=2).mean())
    torch.testing.assert_close(found.covariance, expected.covariance, rtol=1e-5, atol=1e-6 * scale)
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-6, atol=1e-6)


def test_samples_that_count_more():
    layer, x = seeded(lambda: nn.Conv1d(2, 2, 8)), seeded(lambda: torch.randn(6, 2, 40))
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0, 3.0])
    signals = Signals(x[:, None, :, None], 8, 1)
    shift = torch.tensor([[0.3, -0.2]])
    windows = (x - shift[0, :, None]).unfold(2, 8, 1).permute(1, 3, 0, 2).flatten(0, 1).double()
    expected = torch.einsum("ibp,jbp,b->ij", windows, windows, weights.double())
    total = LagSum((1, 2, 8), 1, torch.device("cpu"))
    total.add(signals.less(shift, weights), 0.5)
    torch.testing.assert_close(2 * total.matrix()[0], expected, rtol=1e-5, atol=1e-4)
    assert layer.weight[0].numel() == len(expected)


def test_ends_of_many_signals_become_a_matrix():
    x = seeded(lambda: torch.randn(2, 3, 40, 30))  # groups, channels, signals, length
    total = LagSum((2, 3, 9), 2, torch.device("cpu"))
    for part, folded in zip(x.split([5, 30, 5], dim=2), (False, True, True), strict=True):
        total.add(part, 1.0)
        assert (total._change is not None) == folded
    windows = x.unfold(3, 17, 1)[..., ::2].permute(0, 1, 4, 2, 3).flatten(3).flatten(1, 2).double()
    torch.testing.assert_close(total.matrix(), windows @ windows.mT, rtol=1e-5, atol=1e-4)


class Dilated(nn.Module):
    """Two layers of one weight, of which the second looks further."""

    def __init__(self):
        super().__init__()
        self.near, self.far = nn.Conv1d(2, 2, 8), nn.Conv1d(2, 2, 8, dilation=2)
        self.far.weight = self.near.weight

    def forward(self, x):
        return self.near(x).sum() + self.far(x).sum()


def test_layers_that_share_a_weight_may_be_dilated_differently(monkeypatch):
    model, x = seeded(Dilated), seeded(lambda: torch.randn(6, 2, 40))
    (found,) = statistics(model, [x[:2], x[2:]]).values()
    monkeypatch.setattr(lagged, "_TAPS", 1000)
    (expected,) = statistics(model, [x[:2], x[2:]]).values()
    torch.testing.assert_close(
        found.moments.covariance, expected.moments.covariance, rtol=1e-5, atol=1e-6
    )
