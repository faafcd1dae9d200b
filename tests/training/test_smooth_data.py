"""What may be passed as X and y, and what comes back."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.metrics import accuracy_score
from sklearn.model_selection import cross_val_score
from skorch.callbacks import EpochScoring
from skorch.dataset import ValidSplit
from skorch.helper import SliceDataset
from smooth_cases import Convolutional, curve, digits, weights
from torch import nn
from torch.utils.data import TensorDataset

from skcompress.training import SmoothClassifier, SmoothRegressor

X, Y = digits()
IMAGES = X.reshape(-1, 1, 8, 8)
NAMES = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
QUICK = {"max_epochs": 2, "lr": 1e-2, "random_state": 0}


def classifier(*args, **settings) -> SmoothClassifier:
    return SmoothClassifier(*args, **QUICK | settings)


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    return classifier().fit(X, Y).predict_proba(X)


@pytest.mark.parametrize(
    "convert",
    [
        lambda a: a.astype(np.float32),
        np.asfortranarray,
        lambda a: a.tolist(),
        pd.DataFrame,
        torch.from_numpy,
        lambda a: torch.from_numpy(a).float().requires_grad_(),
        lambda a: a.reshape(-1, 1, 8, 8),
    ],
)
def test_arrays_of_all_kinds_are_one(convert, reference):
    inputs = convert(X)
    assert np.allclose(classifier().fit(inputs, Y).predict_proba(inputs), reference, atol=1e-5)


@pytest.mark.parametrize("convert", [list, torch.from_numpy, pd.Series, np.int32, np.float64])
def test_labels_of_all_kinds_are_one(convert, reference):
    net = classifier().fit(X, convert(Y))
    assert np.allclose(net.predict_proba(X), reference, atol=1e-6)
    assert net.classes_.tolist() == list(range(10))


def test_integers_and_booleans_are_numbers_to_the_default_network():
    for dtype in (np.int64, np.uint8, bool):
        inputs = (X * 16).astype(dtype)
        assert classifier().fit(inputs, Y).score(inputs, Y) > 0.3


def test_integers_reach_an_embedding_as_they_are():
    tokens = np.random.RandomState(0).randint(0, 20, (60, 5))
    net = classifier(nn.Sequential(nn.Embedding(20, 8), nn.Flatten(), nn.Linear(40, 2)))
    assert net.fit(tokens, tokens[:, 0] > 9).predict(tokens).dtype == bool


def test_floats_take_the_dtype_of_the_network():
    double = Convolutional().double()
    net = classifier(double, max_epochs=1).fit(IMAGES.astype(np.float32), Y)
    assert net.predict_proba(IMAGES.astype(np.float16)).dtype == np.float64


def test_labels_may_be_strings():
    net = classifier(max_epochs=20).fit(X, NAMES[Y])
    assert net.classes_.tolist() == sorted(NAMES)
    assert (net.predict(X) == NAMES[Y]).mean() > 0.9
    assert net.score(X, NAMES[Y]) > 0.9


def test_labels_may_be_any_integers():
    net = classifier(max_epochs=20).fit(X, 7 * Y - 3)
    assert net.classes_.tolist() == (7 * np.arange(10) - 3).tolist()
    assert net.score(X, 7 * Y - 3) > 0.9


def test_scoring_callbacks_agree_with_string_labels():
    train = EpochScoring("accuracy", on_train=True, name="train_acc", lower_is_better=False)
    area = EpochScoring("roc_auc_ovr", name="area", lower_is_better=False)
    net = classifier(
        max_epochs=20, train_split=ValidSplit(5, stratified=True), callbacks=[train, area]
    ).fit(X, NAMES[Y])
    assert net.history[-1, "train_acc"] > 0.9
    assert net.history[-1, "valid_acc"] > 0.7
    assert net.history[-1, "area"] > 0.9


def test_classes_may_be_named_in_any_order():
    order = NAMES.tolist()
    net = classifier(max_epochs=20, classes=order).fit(X[:100], NAMES[Y[:100]])
    assert net.classes_.tolist() == order
    assert accuracy_score(Y[:100], net.predict_proba(X[:100]).argmax(1)) > 0.9
    assert net.score(X[:100], NAMES[Y[:100]]) > 0.9


def test_partial_fit_is_told_the_classes_it_has_not_seen():
    few = Y < 5
    net = classifier(max_epochs=10).partial_fit(X[few], NAMES[Y[few]], classes=NAMES)
    assert set(net.predict(X)) <= set(NAMES[:5])
    net.set_params(max_epochs=20).partial_fit(X, NAMES[Y])
    assert net.score(X, NAMES[Y]) > 0.8


def test_a_label_from_nowhere():
    net = classifier().partial_fit(X[Y < 5], Y[Y < 5])
    with pytest.raises(ValueError, match=r"labels \[5, .* 9\], which are not among .*classes="):
        net.partial_fit(X, Y)


def test_datasets():
    data = TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(Y))
    net = classifier(Convolutional, max_epochs=10).fit(data)
    arrays = classifier(Convolutional, max_epochs=10).fit(IMAGES, Y)
    assert torch.equal(weights(net.module_), weights(arrays.module_))
    assert np.array_equal(net.predict(data), arrays.predict(IMAGES))
    assert np.array_equal(net.predict(IMAGES), arrays.predict(IMAGES))
    assert net.classes_.tolist() == list(range(10))
    assert net.score(data, Y) > 0.9


@pytest.mark.parametrize("estimator", [SmoothClassifier, SmoothRegressor])
def test_a_dataset_sizes_the_default_network(estimator):
    targets = Y if estimator is SmoothClassifier else np.stack([Y, -Y], 1)
    data = TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(targets))
    state = torch.get_rng_state()
    net = estimator(**QUICK).fit(data)
    assert torch.equal(torch.get_rng_state(), state)
    assert net.module_.layers[0].in_features == 64
    assert net.module_.layers[-1].out_features == (10 if estimator is SmoothClassifier else 2)


def test_other_data_makes_another_network():
    net = classifier().fit(X, Y)
    data = TensorDataset(torch.from_numpy(X[:, :9]), torch.from_numpy(Y % 3))
    net.fit(data)
    assert net.predict_proba(X[:, :9]).shape == (200, 3)
    assert net.classes_.tolist() == [0, 1, 2]


def test_dicts_of_arrays():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(32, 10), nn.Linear(32, 10)

        def forward(self, left, right):
            return self.left(left) + self.right(right)

    halves = {"left": X[:, :32], "right": X[:, 32:]}
    net = classifier(Halves, max_epochs=20, lr=3e-2).fit(halves, NAMES[Y])
    assert net.score(halves, NAMES[Y]) > 0.9
    with pytest.raises(ValueError, match="requires y to be passed, unless X is a torch Dataset"):
        net.fit(halves)


def test_a_sliced_dataset_in_cross_validation():
    data = TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(Y))
    scores = cross_val_score(classifier(Convolutional, max_epochs=10), SliceDataset(data), Y, cv=2)
    assert min(scores) > 0.7
    net = classifier(Convolutional).fit(SliceDataset(data), SliceDataset(data, idx=1))
    assert net.classes_.tolist() == list(range(10))


@pytest.mark.parametrize("form", ["csr_array", "dok_array", "coo_matrix"])
def test_sparse_matrices_are_refused(form):
    inputs = getattr(sparse, form)(X)
    with pytest.raises(TypeError, match=r"(?i)sparse"):
        classifier().fit(inputs, Y)
    with pytest.raises(TypeError, match=r"(?i)sparse"):
        classifier().fit(X, Y).predict(inputs)


def test_no_feature_may_be_missing_or_renamed():
    table = pd.DataFrame(X[:, :3], columns=["a", "b", "c"])
    net = classifier().fit(table, Y)
    assert net.feature_names_in_.tolist() == ["a", "b", "c"]
    with pytest.raises(ValueError, match="feature names"):
        net.predict(table.rename(columns={"a": "z"}))
    with pytest.raises(ValueError, match="feature names"):
        net.predict(table[["a", "b"]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(120,), (120, 1), (120, 3)])
def test_predictions_look_like_the_targets(shape, dtype):
    inputs, targets = curve()
    wide = np.broadcast_to(targets[:, None], (120, 3)).reshape(-1)[: np.prod(shape)].reshape(shape)
    net = SmoothRegressor(**QUICK).fit(inputs, wide.astype(dtype))
    assert net.predict(inputs).shape == shape
    assert net.predict(inputs).dtype == dtype


@pytest.mark.parametrize("flat", [True, False])
def test_networks_with_one_output_may_be_flat(flat):
    module = nn.Sequential(nn.Linear(2, 1), *[nn.Flatten(0)] * flat)
    inputs, targets = curve()
    for y in (targets, targets[:, None]):
        net = SmoothRegressor(module, **QUICK | {"max_epochs": 20, "lr": 3e-2}).fit(inputs, y)
        assert net.predict(inputs).shape == y.shape
        assert net.score(inputs, y) > 0.6


def test_targets_of_a_dataset():
    inputs, targets = (torch.from_numpy(a) for a in curve())
    net = SmoothRegressor(**QUICK | {"max_epochs": 40}).fit(TensorDataset(inputs, targets))
    assert net.predict(inputs).shape == (120, 1)
    assert net.score(inputs, targets) > 0.9
