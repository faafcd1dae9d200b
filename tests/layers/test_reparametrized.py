"""Layers whose weight torch computes from other tensors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from models import distance, exact, random, seeded
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from skcompress import SVDCompressor, count_parameters
from skcompress.layers.linear import FactorizedLinear

NORMS = {
    "weight_norm of hooks": weight_norm,
    "spectral_norm of hooks": spectral_norm,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.3),
    "pruning twice": lambda layer: prune.random_unstructured(
        prune.l1_unstructured(layer, "weight", amount=0.3), "weight", amount=0.1
    ),
}


def normed(name: str) -> nn.Module:
    def build():
        layer = NORMS[name](nn.Linear(20, 24, dtype=torch.float64))
        for _ in range(30):  # spectral norms converge in training mode
            layer(torch.zeros(1, 20, dtype=torch.float64))
        return layer

    return seeded(build)


every_norm = pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated"))
        for n in NORMS
    ],
)


@every_norm
@pytest.mark.parametrize("training", [True, False])
def test_the_weight_in_force_is_factorised(name, training):
    dense = normed(name).train(training)
    state = {key: value.clone() for key, value in dense.state_dict().items()}
    compressor = SVDCompressor(rank=10)
    small = compressor.fit_transform(nn.Sequential(dense))[0]
    after = dense.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[key], state[key]) for key in state)

    assert isinstance(small, FactorizedLinear)
    assert small.training == dense.training == training
    assert count_parameters(small) == compressor.n_parameters_out_
    dense.eval()
    weight = dense(torch.eye(20, dtype=torch.float64)).mT - dense.bias[:, None]
    # The truncated SVD itself is not unique where singular values repeat; its error is.
    values = torch.linalg.svdvals(weight)
    least = float((values[10:].norm() / values.norm()).detach())
    assert distance(small.weight, weight) == pytest.approx(least, abs=1e-9)
    small(random(3, 20)).sum().backward()
    assert all(stage.weight.grad is not None for stage in small)


@every_norm
def test_a_dense_copy_computes_its_weight_as_before(name):
    dense = normed(name)
    model = nn.Sequential(dense, nn.Linear(24, 24, dtype=torch.float64))
    small = exact(layers="1").fit_transform(model)
    assert type(small[0]).__name__ == type(dense).__name__  # torch makes a class of each
    x = random(3, 20)
    assert distance(small[0].eval()(x), dense.eval()(x)) == 0.0
    small[0](x).sum().backward()
    trained = [p for p in small[0].parameters() if p.grad is not None]
    assert len(trained) == len(list(dense.parameters()))
    assert all(p.grad is None for p in dense.parameters())


@every_norm
def test_computed_weights_on_the_meta_device(name):
    dense = normed(name)
    compressor = SVDCompressor(rank=4).fit(dense)
    hollow = compressor.transform(normed(name).to("meta"))
    assert [p.shape for p in hollow.parameters()] == [(4, 20), (24, 4), (24,)]


def test_pruned_weight_that_was_trained_since_the_last_call():
    dense = prune.l1_unstructured(
        seeded(lambda: nn.Linear(20, 24, dtype=torch.float64)), "weight", amount=0.3
    )
    with torch.no_grad():
        dense.weight_orig.mul_(3.0)  # as an optimiser does; `weight` is out of date now
    x = random(3, 20)
    small = SVDCompressor(rank=10).fit_transform(dense)
    left, values, right = torch.linalg.svd(dense.weight_orig * dense.weight_mask)
    best = (left[:, :10] * values[:10]) @ right[:10]
    assert distance(small(x), F.linear(x, best, dense.bias)) < 1e-10


def test_computed_bias_is_left_with_the_reason():
    parametrized = nn.Linear(16, 16)
    parametrize.register_parametrization(parametrized, "bias", nn.ReLU())
    pruned = prune.l1_unstructured(nn.Linear(16, 16), "bias", amount=0.3)
    for layer in (parametrized, pruned):
        model = nn.Sequential(layer, nn.Linear(16, 16))
        compressor = exact()
        small = compressor.fit_transform(model)
        assert compressor.plan_["0"].reason == "its bias is computed from other parameters"
        x = random(2, 16, dtype=torch.float32)
        assert torch.equal(small[0](x), layer(x))


def test_a_parametrization_that_two_layers_share_keeps_them_dense():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.mask = nn.Parameter(torch.ones(16, 16))

        def forward(self, weight):
            return weight * self.mask

    model = seeded(lambda: nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)))
    shared = Masked()
    parametrize.register_parametrization(model[0], "weight", shared)
    parametrize.register_parametrization(model[1], "weight", shared)
    compressor = exact()
    small = compressor.fit_transform(model)
    assert all("shares its weight among 0, 1" in compressor.plan_[n].reason for n in "01")
    assert isinstance(small[2], FactorizedLinear)
    assert count_parameters(small) == compressor.n_parameters_out_
