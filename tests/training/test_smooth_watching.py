"""Networks that are looked at while they train, and nets that train in several threads."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from smooth_cases import digits
from torch import nn

from skcompress import SmoothClassifier
from skcompress.training.watching import watched

X, y = digits(120)


def build():
    # Drop-out and shuffling draw from torch's global generator.
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 10))


def net(seed: int = 0, **parameters):
    return SmoothClassifier(
        build, **{"max_epochs": 3, "lr": 1e-2, "random_state": seed, **parameters}
    )


def weights(module):
    return torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])


def test_the_network_before_and_after_each_epoch():
    seen = []

    def look(network, n_epochs):
        seen.append((n_epochs, weights(network)))

    classifier = net(compressor="svd", compressor__rank=0.9)
    with watched(classifier, look):
        classifier.fit(X, y)
    assert [n_epochs for n_epochs, _ in seen] == [0, 1, 2, 3]
    assert torch.equal(seen[-1][1], weights(classifier.dense_module_))
    assert not torch.equal(seen[0][1], seen[1][1])
    classifier.fit(X, y)  # nobody looks any more
    assert len(seen) == 4


def test_what_a_look_draws_or_raises_leaves_no_trace():
    def drawing(network, n_epochs):
        torch.rand(7)
        np.random.rand(7)

    state = torch.random.get_rng_state()
    looked, alone = net(), net().fit(X, y)
    with watched(looked, drawing):
        looked.fit(X, y)
    assert torch.equal(weights(looked.module_), weights(alone.module_))

    def failing(network, n_epochs):
        if n_epochs == 2:
            raise InterruptedError("enough")

    with pytest.raises(InterruptedError), watched(looked, failing):
        looked.fit(X, y)
    assert len(looked.history) == 2
    torch.random.set_rng_state(state)
    net().fit(X, y)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_net_amid_training_can_be_pickled():
    copies = []
    classifier = net()
    with watched(classifier, lambda *_: copies.append(pickle.dumps(classifier))):
        classifier.fit(X, y)
    assert pickle.loads(copies[-1]).predict(X).shape == (len(X),)


@pytest.mark.parametrize("looks", [False, True])
def test_nets_in_threads_train_as_they_do_alone(looks):
    def trained(seed):
        classifier = net(seed, max_epochs=4)
        with watched(classifier, (lambda *_: None) if looks else None):
            return weights(classifier.fit(X, y).module_)

    state = torch.random.get_rng_state()
    alone = [trained(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(trained, range(4)))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)
