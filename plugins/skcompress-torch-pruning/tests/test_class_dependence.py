"""Classes that count more keep more of their accuracy: a small network trained on digits."""

from __future__ import annotations

import pytest
import torch
from skcompress_torch_pruning import ChannelPruner
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

COSTLY = (3, 8)


@pytest.fixture(scope="module")
def digits():
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return (x[order[:1200]], y[order[:1200]]), (x[order[1200:]], y[order[1200:]])


@pytest.fixture(scope="module")
def network(digits):
    (x, y), _ = digits
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
        )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(12):
        for part in torch.randperm(len(x), generator=generator).split(60):
            loss = nn.functional.cross_entropy(model(x[part]), y[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model, data, classes):
    x, y = data
    chosen = torch.isin(y, torch.tensor(classes))
    return float((model(x[chosen]).argmax(1) == y[chosen]).float().mean())


def pairs(data):
    return DataLoader(TensorDataset(*data), batch_size=100)


@pytest.mark.parametrize(("criterion", "ratio"), [("taylor", 0.5), ("lrp", 0.5), ("merge", 0.75)])
def test_classes_that_count_more_keep_more(criterion, ratio, digits, network):
    train, test = digits
    assert accuracy(network, test, range(10)) > 0.97
    kept = {}
    for weight in (None, dict.fromkeys(range(10), 0.02) | dict.fromkeys(COSTLY, 10.0)):
        pruner = ChannelPruner(
            ratio, criterion, class_weight=weight, recalibrate_norm=False, min_kept=1
        )
        small = pruner.fit_transform(network, pairs(train))
        kept[weight is None] = accuracy(small, test, COSTLY)
    print(criterion, kept)
    assert kept[False] > kept[True] + 0.05


def test_sample_weights_are_class_weights_one_by_one(digits, network):
    train, _ = digits
    weights = {c: 5.0 if c in COSTLY else 1.0 for c in range(10)}
    by_class = ChannelPruner(0.5, "taylor", class_weight=weights).fit(network, pairs(train))
    each = torch.tensor([weights[int(c)] for c in train[1]])
    by_sample = ChannelPruner(0.5, "taylor").fit(network, pairs(train), sample_weight=each)
    assert by_class.plan_ == by_sample.plan_
    alike = ChannelPruner(0.5, "taylor").fit(network, pairs(train))
    assert alike.plan_ != by_class.plan_
