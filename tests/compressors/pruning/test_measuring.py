"""What zeros of one weight do to the outputs, against really setting them."""

from __future__ import annotations

import copy

import pytest
import torch
from models import random, seeded
from torch import nn

from skcompress import Pruner
from skcompress.allocations.rate_distortion import RateDistortion
from skcompress.errors import AllocationValueError
from skcompress.network.batches import batches
from skcompress.ranking import keep_largest
from skcompress.statistics.divergence import divergence


class Recording(RateDistortion):
    """Notes what it is told."""

    def divide(self, weights, n_kept):
        type(self).told = {w.name: list(w.distortion([w.size // 10, w.size])) for w in weights}
        return super().divide(weights, n_kept)


def test_losses_are_those_of_the_pruned_network():
    model = seeded(lambda: nn.Sequential(nn.Linear(10, 30), nn.ReLU(), nn.Linear(30, 5)))
    x = random(120, 10, dtype=torch.float32)
    before = copy.deepcopy(model.state_dict())
    allocation = Recording(distortion="measured")
    sparse = Pruner("magnitude", 0.8, allocation=allocation).fit_transform(model, x)
    for name in ("0", "2"):
        pruned = copy.deepcopy(model)
        weight = pruned.get_submodule(name).weight.data
        weight *= keep_largest(weight.abs(), weight.numel() // 10)
        expected = divergence(model, pruned, batches("Test", x, model))
        assert Recording.told[name] == pytest.approx([expected, 0.0], rel=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    n_zeros = sum(int((layer.weight == 0).sum()) for layer in (sparse[0], sparse[2]))
    assert n_zeros == round(0.8 * 450)


def test_other_words_are_refused():
    pruner = Pruner("magnitude", allocation=RateDistortion(distortion="guessed"))
    with pytest.raises(AllocationValueError, match="distortion of RateDistortion must be 'pred"):
        pruner.fit(nn.Linear(8, 8), torch.zeros(4, 8))
