"""Estimators among estimators: clones, copies, pickles, searches, random states."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.dataset import ValidSplit
from smooth_cases import Convolutional, curve, digits, weights
from torch import nn

from skcompress import FirstDifference, NuclearNorm, SVDCompressor, count_parameters
from skcompress.training import SmoothClassifier, SmoothRegressor

X, Y = digits(120)
IMAGES = X.reshape(-1, 1, 8, 8)
QUICK = {"max_epochs": 2, "lr": 1e-2}


def test_clones_share_settings_and_nothing_learnt():
    net = SmoothClassifier(
        Convolutional(),
        regularizer=NuclearNorm(1e-3) + FirstDifference(1e-2),
        compressor=SVDCompressor(rank=0.5),
        compressor__rank=0.7,
        optimizer__weight_decay=1e-4,
        callbacks__print_log=None,
        **QUICK,
    ).fit(IMAGES, Y)
    twin = clone(net)
    assert not hasattr(twin, "module_")
    assert twin.get_params()["optimizer__weight_decay"] == 1e-4
    assert twin.get_params()["compressor__rank"] == 0.7
    assert twin.regularizer is not net.regularizer
    twin.fit(IMAGES, Y)
    assert count_parameters(twin.module_) == count_parameters(net.module_)


def test_parameters_of_the_parts_are_listed_and_set():
    net = SmoothClassifier(regularizer=NuclearNorm(1e-3, scheme="input"), compressor="svd")
    assert net.get_params()["regularizer__scheme"] == "input"
    net.set_params(regularizer__weight=1e-2, compressor__rank=0.6)
    assert net.get_params()["regularizer__weight"] == 1e-2
    net.fit(X, Y)
    assert (net.regularizer_.weight, net.regularizer_.scheme) == (1e-2, "input")
    assert net.compressor_.rank == 0.6
    net.set_params(regularizer="first_difference", compressor__rank=0.9)
    assert isinstance(net.regularizer_, FirstDifference)
    with pytest.raises(ValueError, match="Invalid parameter 'regulariser'"):
        net.set_params(regulariser="nuclear_norm")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
@pytest.mark.parametrize("compressor", [None, "svd"])
def test_copies_predict_the_same_and_train_on(copied, compressor):
    net = SmoothClassifier(Convolutional, compressor=compressor, random_state=0, **QUICK)
    net.fit(IMAGES, Y)
    twin = copied(net)
    assert np.array_equal(twin.predict_proba(IMAGES), net.predict_proba(IMAGES))
    assert (twin.dense_module_ is twin.module_) == (compressor is None)
    for other in (twin, net):
        other.partial_fit(IMAGES, Y)
    assert torch.equal(weights(twin.dense_module_), weights(net.dense_module_))
    assert torch.equal(weights(twin.module_), weights(net.module_))


def test_an_instance_of_a_module_is_copied():
    module = Convolutional()
    before = weights(module).clone()
    net = SmoothClassifier(module, random_state=0, **QUICK).fit(IMAGES, Y)
    assert torch.equal(weights(module), before)
    first = weights(net.module_)
    assert torch.equal(weights(net.fit(IMAGES, Y).module_), first)


def test_repr_shows_what_differs_from_the_defaults():
    net = SmoothClassifier(lr=0.1, regularizer="l1", regularizer__weight=0.1)
    assert repr(net) == "SmoothClassifier(lr=0.1, regularizer='l1', regularizer__weight=0.1)"
    assert repr(SmoothRegressor()) == "SmoothRegressor()"
    diagram = SmoothClassifier(compressor=SVDCompressor(rank=0.4), **QUICK).fit(X, Y)._repr_html_()
    assert "SmoothClassifier" in diagram
    assert "SVDCompressor" in diagram


def test_grid_search_in_other_processes():
    search = GridSearchCV(
        make_pipeline(StandardScaler(), SmoothClassifier(compressor="svd", **QUICK)),
        {
            "smoothclassifier__regularizer": ["nuclear_norm", FirstDifference(1e-3)],
            "smoothclassifier__compressor__rank": [0.4, 0.9],
        },
        cv=2,
        n_jobs=2,
        error_score="raise",
    ).fit(X, Y)
    assert len(search.cv_results_["params"]) == 4
    best = search.best_estimator_[-1]
    assert best.compressor_.rank == search.best_params_["smoothclassifier__compressor__rank"]
    assert search.score(X, Y) > 0.3


def test_grid_search_over_strengths_and_networks():
    grid = {"regularizer__weight": [0.0, 10.0], "module": [None, nn.Linear(64, 10)]}
    search = GridSearchCV(SmoothClassifier(max_epochs=10, lr=1e-2), grid, cv=2).fit(X, Y)
    assert search.best_params_["regularizer__weight"] == 0.0
    assert search.best_score_ > 0.5


def test_cross_validation_of_a_regressor():
    inputs, targets = curve()
    net = SmoothRegressor(compressor="svd", compressor__rank=0.5, lr=1e-2, random_state=0)
    assert cross_val_score(net, inputs, targets, cv=2).min() > 0.8


def test_the_same_seed_gives_the_same_weights_and_leaves_the_callers():
    settings = {"module": Convolutional, "train_split": ValidSplit(3), **QUICK}
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    nets = [
        SmoothClassifier(random_state=seed, **settings).fit(IMAGES, Y).partial_fit(IMAGES, Y)
        for seed in (0, 0, 1, np.random.RandomState(3))
    ]
    nets[0].predict(IMAGES)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])
    assert torch.equal(weights(nets[0].module_), weights(nets[1].module_))
    for other in nets[2:]:
        assert not torch.equal(weights(nets[0].module_), weights(other.module_))


def test_the_callers_generator_is_left_after_an_error_too():
    class Failing(Convolutional):
        def forward(self, images):
            super().forward(images)
            raise RuntimeError("amid the batch")

    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="amid the batch"):
        SmoothClassifier(Failing, random_state=0).fit(IMAGES, Y)
    assert torch.equal(torch.get_rng_state(), state)


def test_more_training_shuffles_anew():
    class Order(SmoothClassifier):
        def train_step(self, batch, **fit_params):
            seen.append(batch[1].tolist())
            return super().train_step(batch, **fit_params)

    seen: list[list[int]] = []
    Order(random_state=0, max_epochs=1, batch_size=-1).fit(X, Y).partial_fit(X, Y)
    assert seen[0] != seen[1] != Y.tolist()
    assert sorted(seen[0]) == sorted(Y)


def test_without_a_seed_torchs_own_generator_decides():
    def train():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            nets = [SmoothClassifier(**QUICK).fit(X, Y) for _ in range(2)]
        return [weights(net.module_) for net in nets]

    first, again = train(), train()
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1])


def test_without_skorch_the_error_says_what_to_install():
    code = "import sys; sys.modules['skorch'] = None; import skcompress.training"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last == (
        "ImportError: SmoothClassifier and SmoothRegressor need skorch, which is not "
        "installed: pip install 'skcompress[train]'"
    )
