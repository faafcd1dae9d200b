"""What skorch's nets can do, these can do: callbacks, parameters, files."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
import torch
from skorch.callbacks import Checkpoint, EarlyStopping, LRScheduler
from skorch.dataset import ValidSplit
from skorch.hf import AccelerateMixin
from smooth_cases import Convolutional, digits, weights
from torch import nn
from torch.utils.data import DataLoader, SequentialSampler

from skcompress.training import SmoothClassifier, SmoothRegressor

X, Y = digits(120)
IMAGES = X.reshape(-1, 1, 8, 8)


def classifier(**settings) -> SmoothClassifier:
    return SmoothClassifier(**{"max_epochs": 3, "random_state": 0} | settings)


def test_early_stopping_and_schedules():
    net = classifier(
        max_epochs=50,
        lr=0.1,
        train_split=ValidSplit(5, stratified=True),
        callbacks=[
            EarlyStopping(patience=2, load_best=True),
            LRScheduler(policy=torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5),
        ],
        compressor="svd",
        compressor__rank=1.0,
    ).fit(X, Y)
    assert len(net.history) < 50
    assert net.optimizer_.param_groups[0]["lr"] < 0.1
    best = min(net.history[:, "valid_loss"])
    valid = net.train_split(net.get_dataset(X, Y), Y)[1]
    loss = nn.functional.cross_entropy(net.forward(valid), torch.tensor([y for _, y in valid]))
    assert float(loss) == pytest.approx(best, rel=1e-4)


def test_a_checkpoint_that_pickles_predicts_labels(tmp_path):
    names = np.array([f"class {y}" for y in Y])
    net = classifier(callbacks=[Checkpoint(monitor=None, dirname=tmp_path, f_pickle="net.pkl")])
    net.fit(X, names)
    loaded = pickle.loads((tmp_path / "net.pkl").read_bytes())
    assert set(loaded.predict(X)) <= set(names)


def test_parameters_are_saved_and_loaded(tmp_path):
    checkpoint = Checkpoint(monitor=None, dirname=tmp_path)
    net = classifier(callbacks=[checkpoint]).fit(X, Y)
    file = io.BytesIO()
    net.save_params(f_params=file)
    file.seek(0)
    other = classifier(max_epochs=0).fit(X, Y)
    other.load_params(f_params=file)
    assert np.array_equal(other.predict(X), net.predict(X))
    other.load_params(checkpoint=checkpoint)
    assert torch.equal(weights(other.module_), weights(net.module_))


def test_an_initialized_net_loads_and_predicts_without_fit():
    net = classifier(module=Convolutional, classes=["a"] * 10).initialize()
    assert set(net.predict(IMAGES)) == {"a"}
    net = classifier(module=Convolutional).initialize()
    assert net.predict(IMAGES).dtype == np.int64
    net = SmoothRegressor(Convolutional).initialize()
    assert net.predict(IMAGES).shape == (120, 10)


def test_trimmed_for_prediction():
    net = classifier(compressor="svd").fit(X, Y)
    expected = net.predict_proba(X)
    net.trim_for_prediction()
    assert not hasattr(net, "dense_module_")
    assert np.array_equal(net.predict_proba(X), expected)
    assert np.array_equal(pickle.loads(pickle.dumps(net)).predict_proba(X), expected)


def test_progress_bar_on_request(capsys):
    classifier().fit(X, Y)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    classifier(progress_bar=True).fit(X, Y)
    assert "0/4 [" in capsys.readouterr().err


def test_verbose_prints_a_table_with_the_penalty(capsys):
    classifier(verbose=1).fit(X, Y)
    header = capsys.readouterr().out.splitlines()[0].split()
    assert header == ["epoch", "penalty", "train_loss", "dur"]


def test_other_criteria_iterators_and_samplers():
    class Small(DataLoader):
        pass

    softmax = nn.Sequential(nn.Linear(64, 10), nn.Softmax(1))
    net = classifier(module=softmax, criterion=nn.NLLLoss, iterator_train=Small, lr=0.1).fit(X, Y)
    assert np.allclose(net.predict_proba(X).sum(1), 1, atol=1e-5)
    assert net.score(X, Y) > 0.5
    fixed = classifier(iterator_train__sampler=SequentialSampler(X)).fit(X, Y)
    unshuffled = classifier(iterator_train__shuffle=False).fit(X, Y)
    assert torch.equal(weights(fixed.module_), weights(unshuffled.module_))


def test_fit_parameters_reach_the_module():
    class Scaled(nn.Linear):
        def forward(self, inputs, scale=1.0):
            scales.add(scale)
            return super().forward(inputs)

    scales: set[float] = set()
    classifier(module=Scaled(64, 10), regularizer=None).fit(X, Y, scale=3.0)
    assert scales == {3.0}


@pytest.mark.parametrize("ready", [False, True])
def test_callbacks_are_parameters(ready):
    net = classifier()
    if ready:
        net.fit(X, Y)
    net.set_params(callbacks=[("stop", EarlyStopping("train_loss"))])
    net.set_params(callbacks__stop__patience=7, callbacks__valid_acc=None)
    net.fit(X, Y)
    assert dict(net.callbacks_)["stop"].patience == 7
    assert "valid_acc" not in dict(net.callbacks_)


def test_a_net_on_accelerate_is_trained_alike():
    accelerate = pytest.importorskip("accelerate")

    class Accelerated(AccelerateMixin, SmoothClassifier):
        pass

    settings = {"regularizer__weight": 1e-2, "compressor": "svd", "random_state": 0, "verbose": 0}
    accelerator = accelerate.Accelerator(cpu=True)
    net = Accelerated(accelerator=accelerator, max_epochs=3, **settings).fit(X, Y)
    assert torch.equal(weights(net.module_), weights(classifier(**settings).fit(X, Y).module_))
