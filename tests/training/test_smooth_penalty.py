"""The penalty reaches the weights, once per evaluation of the loss, and shows in the history."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from skorch.callbacks import Callback, GradientNormClipping
from smooth_cases import Convolutional, curve, digits, nuclear_norm, weights
from torch import nn

from skcompress import FirstDifference, NuclearNorm
from skcompress.protocols import Regularizer
from skcompress.training import SmoothClassifier, SmoothRegressor

X, Y = digits()


def fitted(**settings) -> SmoothClassifier:
    return SmoothClassifier(**{"max_epochs": 3, "random_state": 0} | settings).fit(X, Y)


def plain_loop(regularizer: Regularizer, *, n_steps: int) -> nn.Module:
    """What one would write without skorch, on the whole data in each step."""
    model = seeded_linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, labels = torch.from_numpy(X).float(), torch.from_numpy(Y)
    for _ in range(n_steps):
        loss = nn.functional.cross_entropy(model(inputs), labels) + regularizer(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def seeded_linear() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Linear(64, 10)


WHOLE = {
    "module": seeded_linear(),
    "optimizer": torch.optim.SGD,
    "lr": 0.1,
    "batch_size": -1,
    "iterator_train__shuffle": False,
}


@pytest.mark.parametrize(
    "regularizer", [NuclearNorm(1e-1), FirstDifference(1e-1), NuclearNorm(0.1) + FirstDifference(1)]
)
def test_it_is_the_loss_plus_the_penalty(regularizer):
    net = fitted(regularizer=regularizer, max_epochs=4, **WHOLE)
    expected = plain_loop(regularizer, n_steps=4)
    assert torch.allclose(weights(net.module_), weights(expected), atol=1e-5)


def test_a_stronger_penalty_makes_smoother_weights():
    norms = [
        nuclear_norm(fitted(regularizer=r, regularizer__weight=w).module_)
        for r, w in (("nuclear_norm", 0.0), ("nuclear_norm", 1e-3), ("nuclear_norm", 1e-2))
    ]
    assert norms[0] > norms[1] > norms[2]


def test_without_a_regularizer_it_is_the_weight_zero():
    without, zero = fitted(regularizer=None), fitted(regularizer__weight=0.0)
    assert torch.equal(weights(without.module_), weights(zero.module_))
    assert "penalty" not in without.history[-1]


def test_settings_come_before_those_of_the_instance_which_stays():
    instance = NuclearNorm(weight=5.0)
    net = fitted(regularizer=instance, regularizer__weight=1e-2)
    assert torch.equal(weights(net.module_), weights(fitted(regularizer__weight=1e-2).module_))
    assert instance.get_params() == NuclearNorm(weight=5.0).get_params()
    assert net.regularizer_.weight == 1e-2


def test_history_has_the_loss_of_the_data_and_the_penalty_apart():
    net = fitted(regularizer__weight=1e-2, max_epochs=2, **WHOLE)
    with torch.no_grad():
        start = nn.functional.cross_entropy(
            seeded_linear()(torch.from_numpy(X).float()), torch.from_numpy(Y)
        )
    assert net.history[0, "train_loss"] == pytest.approx(float(start), rel=1e-5)
    assert net.history[-1, "penalty"] == pytest.approx(1e-2 * nuclear_norm(net.module_), rel=1e-5)


def test_the_penalty_of_the_history_knows_no_rhythm():
    rare = NuclearNorm(1e-2, every=7) + FirstDifference(1e-2, every=3)
    net = fitted(regularizer=rare, max_epochs=3, **WHOLE)
    every = NuclearNorm(1e-2) + FirstDifference(1e-2)
    with torch.no_grad():
        assert net.history[-1, "penalty"] == pytest.approx(float(every(net.module_)), rel=1e-5)


class Counted(NuclearNorm):
    """Counts how often its gradients are asked for."""

    n_gradients = 0

    def add_gradients_(self, weights, totals, factor):
        type(self).n_gradients += 1
        super().add_gradients_(weights, totals, factor)


def test_every_is_a_rhythm_over_the_steps():
    Counted.n_gradients = 0
    fitted(regularizer=Counted(1e-2, every=4), max_epochs=3, batch_size=25)
    assert Counted.n_gradients == 3 * (200 // 25) // 4


def test_callbacks_that_clip_see_the_penalty_too():
    class Norm(Callback):
        largest = 0.0

        def on_grad_computed(self, net, named_parameters, **kwargs):
            norms = torch.stack([p.grad.norm() for _, p in named_parameters])
            Norm.largest = max(Norm.largest, float(norms.norm()))

    clip = GradientNormClipping(gradient_clip_value=0.01)
    fitted(regularizer__weight=10.0, callbacks=[clip, ("norm", Norm)])
    assert 0.005 < Norm.largest < 0.0101


def test_gradients_accumulate_as_skorch_describes_it():
    class Accumulating(SmoothClassifier):
        def get_loss(self, *args, **kwargs):
            return super().get_loss(*args, **kwargs) / 2

        def train_step(self, batch, **fit_params):
            step = self.train_step_single(batch, **fit_params)
            if len(self.history[-1, "batches"]) % 2 == 0:
                self.notify("on_grad_computed", named_parameters=self.get_all_learnable_params())
                self.optimizer_.step()
                self.optimizer_.zero_grad()
            return step

    settings = {**WHOLE, "batch_size": 100, "regularizer__weight": 0.1, "max_epochs": 4}
    net = Accumulating(**settings).fit(X, Y)
    expected = plain_loop(NuclearNorm(0.1), n_steps=4)
    assert torch.allclose(weights(net.module_), weights(expected), atol=1e-5)


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_minimises_loss_and_penalty_together(search):
    inputs, targets = curve()
    net = SmoothRegressor(
        nn.Linear(2, 1),
        regularizer="frobenius",
        regularizer__weight=0.05,
        optimizer=torch.optim.LBFGS,
        optimizer__line_search_fn=search,
        lr=0.5,
        batch_size=-1,
    ).fit(inputs, targets)
    expected = Ridge(alpha=0.05 * len(inputs)).fit(inputs, targets)
    assert np.allclose(net.module_.weight.detach(), expected.coef_, atol=1e-4)


def test_a_line_search_sees_the_sum_of_both():
    seen: list[float] = []

    class Recording(torch.optim.LBFGS):
        def step(self, closure):
            def recorded():
                seen.append(float(closure()))
                return closure()

            return super().step(recorded)

    net = fitted(**WHOLE | {"optimizer": Recording}, regularizer__weight=0.5, max_epochs=1)
    start = net.history[0, "train_loss"] + 0.5 * nuclear_norm(seeded_linear())
    assert seen[0] == pytest.approx(start, rel=1e-5)


def test_a_callback_can_change_the_penalty_amid_training():
    class Release(Callback):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 2:
                net.set_params(regularizer__weight=0.0)

    net = fitted(regularizer__weight=1e-2, callbacks=[Release()], max_epochs=4)
    penalties = net.history[:, "penalty"]
    assert penalties[1] > 0
    assert penalties[2:] == [0.0, 0.0]


def test_a_compiled_module_is_trained_with_the_penalty():
    settings = {"module": Convolutional(), "regularizer__weight": 1e-2, "max_epochs": 1}
    images = X.reshape(-1, 1, 8, 8)
    compiled = SmoothClassifier(
        compile=True, compile__backend="eager", compressor="svd", random_state=0, **settings
    ).fit(images, Y)
    plain = SmoothClassifier(compressor="svd", random_state=0, **settings).fit(images, Y)
    assert isinstance(compiled.module_, torch._dynamo.OptimizedModule)
    assert torch.allclose(weights(compiled.module_), weights(plain.module_), atol=1e-5)
    assert np.array_equal(compiled.predict(images), plain.predict(images))
