"""What is held after `fit`: the network that predicts, and the one that was trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import Pipeline
from skorch.callbacks import Callback, Checkpoint
from smooth_cases import Convolutional, curve, digits, weights
from torch import nn

from skcompress import SVDCompressor, TuckerCompressor, count_parameters
from skcompress.errors import BudgetError
from skcompress.protocols import Compressor
from skcompress.training import SmoothClassifier, SmoothRegressor

X, Y = digits()
IMAGES = X.reshape(-1, 1, 8, 8)


def classifier(**settings) -> SmoothClassifier:
    return SmoothClassifier(
        **{"compressor": "svd", "compressor__rank": 0.4, "max_epochs": 4, "random_state": 0}
        | settings
    )


@pytest.fixture(scope="module")
def net() -> SmoothClassifier:
    return classifier().fit(X, Y)


def outputs(module: nn.Module, inputs: np.ndarray = X) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(inputs).float()).softmax(1).numpy()


def test_the_compressed_network_predicts(net):
    assert count_parameters(net.module_) <= 0.4 * count_parameters(net.dense_module_)
    assert np.allclose(net.predict_proba(X), outputs(net.module_), atol=1e-6)
    assert not np.allclose(net.predict_proba(X), outputs(net.dense_module_), atol=1e-3)


def test_it_is_what_the_compressor_makes_of_the_dense_one(net):
    alone = SVDCompressor(rank=0.4).fit_transform(net.dense_module_)
    assert torch.equal(weights(net.module_), weights(alone))
    assert net.compressor_.n_parameters_out_ == count_parameters(net.module_)
    assert "layers.2" in str(net.compressor_.report_)


def test_the_dense_network_is_trained_as_if_there_were_no_compressor(net):
    dense = classifier(compressor=None, compressor__rank=None)
    with pytest.warns(UserWarning, match="compressor__rank has no effect"):
        dense.fit(X, Y)
    assert torch.equal(weights(net.dense_module_), weights(dense.module_))
    assert dense.dense_module_ is dense.module_
    assert dense.compressor_ is None


def test_both_networks_are_left_to_predict(net):
    images = SmoothClassifier(Convolutional(), compressor="svd", max_epochs=1).fit(IMAGES, Y)
    for module in (images.module_, images.dense_module_, net.module_):
        assert not any(part.training for part in module.modules())


@pytest.mark.parametrize(
    "compressor",
    [
        SVDCompressor(rank=0.4),
        TuckerCompressor(rank=0.4),
        Pipeline(
            [("wide", SVDCompressor(rank=0.5)), ("rest", SVDCompressor(rank=2, layers="*.4"))]
        ),
    ],
)
def test_instances_and_pipelines_stay_as_they_are(compressor):
    before = compressor.get_params()
    net = classifier(compressor=compressor, compressor__rank=None)
    del net.compressor__rank
    net.fit(X, Y)
    assert count_parameters(net.module_) < count_parameters(net.dense_module_)
    assert compressor.get_params() == before
    assert not hasattr(compressor, "plan_")
    assert net.compressor_ is not compressor


def test_settings_reach_into_a_pipeline():
    pipeline = Pipeline([("svd", SVDCompressor(rank=0.9))])
    net = classifier(compressor=pipeline, max_epochs=1)
    del net.compressor__rank
    net.set_params(compressor__svd__rank=0.3).fit(X, Y)
    assert count_parameters(net.module_) <= 0.3 * count_parameters(net.dense_module_)
    assert pipeline["svd"].rank == 0.9


def test_whatever_has_fit_transform_is_a_compressor():
    class Halve:
        def fit_transform(self, model):
            return nn.Sequential(*model.layers[:1], nn.Linear(64, 10))

    net = SmoothClassifier(compressor=Halve(), max_epochs=1).fit(X, Y)
    assert len(net.module_) == 2


@pytest.mark.parametrize("again", ["partial_fit", "warm_start"])
def test_more_training_goes_on_with_the_dense_network(again):
    once = classifier(max_epochs=2).fit(X, Y)
    dense, start = once.dense_module_, weights(once.dense_module_)
    loss = once.history[-1, "train_loss"]
    if again == "partial_fit":
        once.partial_fit(X, Y)
    else:
        once.set_params(warm_start=True).fit(X, Y)
    assert once.dense_module_ is dense
    assert not torch.equal(weights(dense), start)
    assert len(once.history) == 4
    assert once.history[-1, "train_loss"] < loss
    alone = SVDCompressor(rank=0.4).fit_transform(dense)
    assert torch.equal(weights(once.module_), weights(alone))


def test_another_rank_without_more_training(net):
    other = classifier().fit(X, Y)
    other.set_params(compressor__rank=0.2).partial_fit(X, Y, epochs=0)
    assert torch.equal(weights(other.dense_module_), weights(net.dense_module_))
    assert count_parameters(other.module_) <= 0.2 * count_parameters(net.dense_module_)
    other.set_params(compressor=None, compressor__rank=None)
    with pytest.warns(UserWarning, match="no effect"):
        other.partial_fit(X, Y, epochs=0)
    assert other.module_ is other.dense_module_


def test_fit_starts_anew():
    net = classifier(max_epochs=2).fit(X, Y)
    first, dense = weights(net.module_), net.dense_module_
    net.fit(X, Y)
    assert net.dense_module_ is not dense
    assert torch.equal(weights(net.module_), first)


def test_new_settings_of_the_module_make_a_new_dense_network(net):
    other = classifier(max_epochs=1, module=Convolutional).fit(IMAGES, Y)
    other.set_params(module__width=4)
    assert not hasattr(other, "dense_module_")
    other.partial_fit(IMAGES, Y)
    assert other.dense_module_.body[0].out_channels == 4


def test_callbacks_meet_the_dense_network_only(tmp_path):
    met = set()

    class Watch(Callback):
        def on_train_begin(self, net, **kwargs):
            met.add(count_parameters(net.module_))

        on_epoch_end = on_train_end = on_train_begin

    checkpoint = Checkpoint(monitor=None, dirname=tmp_path, load_best=False)
    net = classifier(callbacks=[Watch(), checkpoint], max_epochs=1).fit(X, Y).partial_fit(X, Y)
    assert met == {count_parameters(net.dense_module_)}
    saved = torch.load(tmp_path / "params.pt", weights_only=True)
    assert saved.keys() == net.dense_module_.state_dict().keys()


def test_an_error_of_the_compressor_comes_before_the_training():
    class Watch(Callback):
        begun = False

        def on_epoch_begin(self, net, **kwargs):
            Watch.begun = True

    with pytest.raises(BudgetError):
        classifier(compressor__rank=1e-4, callbacks=[Watch]).fit(X, Y)
    assert not Watch.begun


def test_an_error_after_the_training_leaves_the_dense_network():
    class Fragile(Compressor):
        def fit(self, model, data=None):
            self.n_fits_ = getattr(self, "n_fits_", 0) + 1
            return self

        def transform(self, model):
            raise RuntimeError("no")

    net = SmoothClassifier(compressor=Fragile(), max_epochs=2, random_state=0)
    with pytest.raises(RuntimeError, match="no"):
        net.fit(X, Y)
    assert net.dense_module_ is net.module_
    assert net.score(X, Y) > 0.1
    net.set_params(compressor="svd").partial_fit(X, Y, epochs=0)
    assert count_parameters(net.module_) < count_parameters(net.dense_module_)


def test_lazy_modules_are_compressed_too():
    def build():
        return nn.Sequential(nn.LazyLinear(32), nn.ReLU(), nn.LazyLinear(10))

    net = classifier(module=build, max_epochs=1).fit(X, Y)
    assert count_parameters(net.module_) < count_parameters(net.dense_module_)


def test_smooth_weights_survive_compression_better():
    """What it is all for: with the same number of parameters, the penalty saves accuracy."""
    settings = {"compressor__rank": 0.15, "lr": 3e-3, "max_epochs": 30}
    rough = classifier(regularizer=None, **settings).fit(X, Y)
    smooth = classifier(regularizer__weight=3e-2, **settings).fit(X, Y)
    assert smooth.score(X, Y) > rough.score(X, Y) + 0.2


def test_a_regressor_is_compressed():
    inputs, targets = curve()
    net = SmoothRegressor(compressor="svd", regularizer__weight=1e-3, lr=1e-2, random_state=0).fit(
        inputs, targets
    )
    assert count_parameters(net.module_) <= 0.3 * count_parameters(net.dense_module_)
    assert net.score(inputs, targets) > 0.9


def test_compress_does_nothing_but_to_compress():
    net = classifier(max_epochs=2).fit(X, Y)
    dense, history = weights(net.dense_module_), len(net.history)
    net.set_params(compressor__rank=0.2).compress()
    alone = SVDCompressor(rank=0.2).fit_transform(net.dense_module_)
    assert torch.equal(weights(net.module_), weights(alone))
    inputs = torch.from_numpy(X[:50])
    net.compress(inputs)
    alone = SVDCompressor(rank=0.2).fit_transform(net.dense_module_, inputs)
    assert torch.equal(weights(net.module_), weights(alone))
    assert torch.equal(weights(net.dense_module_), dense)
    assert len(net.history) == history
    net.set_params(compressor="tucker", compressor__rank=0.5).compress()
    assert isinstance(net.compressor_, TuckerCompressor)
    bare = classifier(compressor=None, max_epochs=1)
    with pytest.raises(NotFittedError):
        bare.compress()
