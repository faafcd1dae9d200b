"""Samples that count more than others, against moments of data in which they are repeated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from skcompress.errors import SampleWeightError
from skcompress.lockstep.lockstep import Lockstep
from skcompress.network.batches import batches
from skcompress.network.structure import look
from skcompress.network.weighting import class_weights, weighted
from skcompress.network.weights import select
from skcompress.statistics.collecting import collect


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 3, groups=1), nn.Flatten(),
            nn.Linear(4 * 16, 3),
        ).eval()  # fmt: skip


@pytest.fixture
def samples(generator):
    return torch.randn(10, 2, 6, 6, generator=generator), torch.arange(10) % 3


def pairs(x, y, size=4):
    return DataLoader(TensorDataset(x, y), batch_size=size)


def repeated(x, y, label, times):
    return (
        torch.cat([x, *[x[y == label]] * (times - 1)]),
        torch.cat([y, *[y[y == label]] * (times - 1)]),
    )


def test_moments_are_those_of_data_in_which_samples_are_repeated(model, samples):
    x, y = samples
    sites = select(model).sites
    data = weighted(batches("T", pairs(x, y), model), class_weight={1: 3})
    found = collect(model, sites, data)
    expected = collect(model, sites, batches("T", pairs(*repeated(x, y, 1, 3)), model))
    plain = collect(model, sites, batches("T", pairs(x, y), model))
    for name in expected:
        one, other = found[name].moments, expected[name].moments
        assert torch.allclose(one.gram, other.gram, rtol=1e-5, atol=1e-6)
        assert torch.allclose(one.mean, other.mean, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(plain[name].moments.gram, other.gram, rtol=1e-3)


def test_anchored_moments_are_those_of_repeated_samples(model, samples):
    x, y = samples
    sites = {site.name: site for site in select(model).sites}

    def last(data):
        networks = Lockstep(model, sites, data, look(model, sites, data))
        with torch.no_grad():
            for name in networks:
                if name == "0":
                    networks.replace("0", nn.Conv2d(2, 5, 3, padding=1).requires_grad_(False))
                    torch.nn.init.ones_(networks.successor("0").weight)
                    torch.nn.init.zeros_(networks.successor("0").bias)
                if name == "4":
                    return networks.anchored(name, {"": sites["4"].slot})[""]

    found = last(weighted(batches("T", pairs(x, y), model), class_weight={0: 2}))
    expected = last(batches("T", pairs(*repeated(x, y, 0, 2)), model))
    for field in ("gram", "cross", "energy", "inputs", "outputs"):
        one, other = getattr(found, field), getattr(expected, field)
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


class Turned(nn.Module):
    """Reads (batch, sequence, channels) with the sequence first, as many recurrent models do."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        return self.linear(x.transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(3, 2)), Turned()])
def test_positions_of_sequences_have_the_weight_of_their_sample(model, generator):
    x = torch.randn(4, 5, 3, generator=generator)
    weights = torch.arange(1.0, 5.0)
    data = weighted(batches("T", [x], model), sample_weight=weights)
    (found,) = collect(model, select(model).sites, data).values()
    expected = torch.einsum("b,bti,btj->ij", weights, x, x) / (weights.sum() * 5)
    assert torch.allclose(found.moments.gram[0].float(), expected, rtol=1e-5)


def test_balanced_weights_are_those_of_scikit_learn(model, samples):
    from sklearn.utils.class_weight import compute_class_weight

    x, y = samples
    found = class_weights(batches("T", pairs(x, y), model), "balanced")
    expected = compute_class_weight("balanced", classes=np.arange(3), y=y.numpy())
    assert [found[label] for label in (0, 1, 2)] == pytest.approx(expected.tolist())


def test_sample_weights_follow_the_order_of_the_data(model, samples):
    x, y = samples
    data = weighted(batches("T", pairs(x, y), model), {2: 10.0}, torch.arange(10.0))
    found = torch.cat([batch.weights for batch in data])
    assert found.tolist() == [0, 1, 20, 3, 4, 50, 6, 7, 80, 9]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_weight": "even"}, "class_weight of T must be None, 'balanced' or a dict"),
        ({"class_weight": {0: -1}}, "finite weights of at least 0"),
        ({"sample_weight": [1.0, 2.0]}, "has 2 values, fewer than the data has samples"),
        ({"sample_weight": [[1.0]]}, r"of shape \(n,\)"),
    ],
)
def test_bad_weights_are_refused(model, samples, settings, message):
    with pytest.raises(SampleWeightError, match=message):
        list(weighted(batches("T", pairs(*samples), model), **settings))


@pytest.mark.parametrize("labels", [None, torch.zeros(10), torch.zeros(10, 2, dtype=torch.int64)])
def test_classes_need_labels_of_an_integer_for_each_sample(model, samples, labels):
    data = [samples[0]] if labels is None else [(samples[0], labels)]
    with pytest.raises(SampleWeightError, match=r"class_weight of T needs .*label"):
        list(weighted(batches("T", data, model), class_weight={0: 2.0}))
