"""Searches of which each trial trains a network, compresses and scores it."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest
import torch
from models import seeded
from optuna.pruners import MedianPruner, NopPruner, ThresholdPruner
from optuna.samplers import GridSampler
from optuna.trial import TrialState
from sklearn.exceptions import FitFailedWarning
from sklearn.pipeline import Pipeline
from sklearn.utils._param_validation import InvalidParameterError
from torch import nn
from torch.utils.data import TensorDataset

from skcompress import (
    CompressionSearch,
    MagnitudePruner,
    SVDCompressor,
    TuckerCompressor,
    count_parameters,
)
from skcompress.errors import (
    CalibrationError,
    FailedTrialsError,
    NoCompressorError,
    TrainingDataError,
)
from skcompress.fitting.memo import Memo
from skcompress.spaces import FloatRange, IntRange
from skcompress.testing import check_untouched, snapshot

pytest.importorskip("skorch")

from skcompress import SmoothClassifier, SmoothRegressor

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(160, 12, generator=GENERATOR)
LABELS = INPUTS[:, :3].argmax(1)
TRAIN, VALID = (INPUTS[:100], LABELS[:100]), (INPUTS[100:], LABELS[100:])
MODEL = seeded(
    lambda: nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)), 0
)
SPACE = {
    "regularizer": [None, "nuclear_norm", "second_difference"],
    "regularizer.*.weight": ...,
    "max_epochs": IntRange(2, 4),
    "compressor__rank": FloatRange(0.5, 0.9),
}
BEHIND = {name.replace("compressor__", "small__"): space for name, space in SPACE.items()}
BEHIND = {n if n.startswith("small") else f"train__{n}": s for n, s in BEHIND.items()}


def classifier(**parameters):
    given = {"compressor": SVDCompressor(), "lr": 1e-2, "batch_size": 50, **parameters}
    return SmoothClassifier(**given)


def pipeline():
    return Pipeline([("train", classifier(compressor=None)), ("small", SVDCompressor())])


def search(estimator=None, space=SPACE, **settings):
    given = {"scoring": "accuracy", "n_trials": 4, "random_state": 0, **settings}
    return CompressionSearch(classifier() if estimator is None else estimator, space, **given)


@torch.no_grad()
def accuracy(network: nn.Module) -> float:
    return float((network(VALID[0]).argmax(1) == VALID[1]).double().mean())


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in network.parameters()])


def count_trainings(monkeypatch) -> list[int]:
    """List that has the number of epochs of each training that is begun from now on."""
    begun = []
    fit = SmoothClassifier.fit

    def counted(net, *args, **kwargs):
        begun.append(net.max_epochs)
        return fit(net, *args, **kwargs)

    monkeypatch.setattr(SmoothClassifier, "fit", counted)
    return begun


# --- what is found ---------------------------------------------------------------------


@pytest.mark.parametrize(("estimator", "space"), [(classifier, SPACE), (pipeline, BEHIND)])
def test_trials_are_trained_compressed_and_scored(estimator, space):
    before, state = snapshot(MODEL), torch.random.get_rng_state()
    found = search(estimator(), space).fit(MODEL, TRAIN, VALID)
    check_untouched("after a search that trains", MODEL, before)
    assert torch.equal(torch.random.get_rng_state(), state)
    prefix = "train__" if estimator is pipeline else ""
    assert {f"{prefix}max_epochs", f"{prefix}regularizer"} <= set(found.trials_[0].params)
    for row, trial in zip(found.trials_, found.study_.trials, strict=True):
        assert trial.values == [row.found.score, row.found.n_parameters]
        assert row.found.n_parameters < found.dense_.n_parameters == count_parameters(MODEL)
        assert row.found.flops < found.dense_.flops
        attributes = trial.user_attrs
        assert attributes["seconds_training"] > 0 < attributes["seconds_compressing"]
    best = found.best_trial_.found
    assert accuracy(found.best_model_) == best.score
    assert count_parameters(found.best_model_) == best.n_parameters
    again = found.best_compressor_.transform(found.best_dense_model_)
    assert torch.equal(weights(again), weights(found.best_model_))
    assert not torch.equal(weights(found.best_dense_model_), weights(MODEL))
    assert count_parameters(found.transform(MODEL)) == best.n_parameters


def test_a_trial_is_what_the_classifier_does_by_itself():
    found = search().fit(MODEL, TRAIN, VALID)
    for trial in found.study_.trials:
        name = trial.params["regularizer"]
        settings = (
            {} if name is None
            else {"regularizer__weight": trial.params[f"regularizer.{name}.weight"]}
        )  # fmt: skip
        alone = classifier(
            module=MODEL, regularizer=name, max_epochs=trial.params["max_epochs"],
            compressor__rank=trial.params["compressor__rank"],
            random_state=trial.user_attrs["random_state"], **settings,
        ).fit(*TRAIN)  # fmt: skip
        assert accuracy(alone.module_) == trial.user_attrs["score"]
        if trial.number == found.best_trial_.number:
            assert torch.equal(weights(alone.module_), weights(found.best_model_))
    best = found.best_estimator_
    assert best.module_ is found.best_model_
    assert best.dense_module_ is found.best_dense_model_
    assert (best.predict(VALID[0]) == VALID[1].numpy()).mean() == found.best_trial_.found.score
    assert best.compressor_ is found.best_compressor_
    settings = {n: v for n, v in found.best_params_.items() if n != "compressor__rank"}
    assert settings.items() <= best.get_params().items()
    assert best.compressor_.rank == found.best_params_["compressor__rank"]


def test_the_uncompressed_network_is_what_the_estimator_trains_as_it_was_given():
    found = search(constraints="score >= dense - 0.5").fit(MODEL, TRAIN, VALID)
    seed = found.study_.trials[0].user_attrs["random_state"]
    alone = classifier(module=MODEL, compressor=None, random_state=seed).fit(*TRAIN)
    assert found.dense_.score == accuracy(alone.module_)
    assert found.best_trial_.found.score >= found.dense_.score - 0.5


def test_a_pipeline_comes_back_as_one():
    found = search(pipeline(), BEHIND).fit(MODEL, TRAIN, VALID)
    assert [name for name, _ in found.best_estimator_.steps] == ["train", "small"]
    assert found.best_estimator_[0].module_ is found.best_dense_model_
    assert found.best_estimator_[1] is found.best_compressor_
    assert found.best_compressor_.rank == found.best_params_["small__rank"]


def test_several_compressors_one_behind_the_other():
    first = classifier(compressor="tucker", compressor__rank=0.9)
    both = Pipeline([("train", first), ("zeros", MagnitudePruner())])
    space = {"train__max_epochs": 2, "zeros__sparsity": FloatRange(0.2, 0.5)}
    found = search(both, space, n_trials=2).fit(MODEL, TRAIN, VALID)
    assert [name for name, _ in found.best_compressor_.steps] == ["compressor", "zeros"]
    assert accuracy(found.best_model_) == found.best_trial_.found.score
    assert (weights(found.best_model_) == 0).any()


def test_labels_of_any_kind_a_dataset_and_a_regressor():
    names = np.array(["c", "a", "b"])
    found = search(n_trials=2).fit(
        MODEL, (TRAIN[0].numpy(), names[TRAIN[1]]), (VALID[0].numpy(), names[VALID[1]])
    )
    assert set(found.best_estimator_.predict(VALID[0])) <= set(names)
    found = search(n_trials=2).fit(MODEL, TensorDataset(*TRAIN), VALID)
    assert found.dense_.flops > 0
    targets = INPUTS[:, :1] * INPUTS[:, 1:2]
    one = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 1))
    regressor = SmoothRegressor(compressor="svd", max_epochs=2)
    space = {"compressor__rank": FloatRange(0.5, 0.9)}
    found = search(regressor, space, scoring="r2", n_trials=2)
    found.fit(one, (INPUTS[:100], targets[:100]), (INPUTS[100:], targets[100:]))
    assert found.best_trial_.found.score < 1


def test_calibration_inputs_are_for_the_compressors():
    space = {"max_epochs": 2, "compressor__rank": 0.5, "compressor__metric": ...}
    found = search(space=space, n_trials=2).fit(MODEL, TRAIN, VALID, INPUTS[:50])
    alone = clone_of(found.best_compressor_).fit_transform(found.best_dense_model_, INPUTS[:50])
    assert torch.equal(weights(alone), weights(found.best_model_))
    blind = clone_of(found.best_compressor_).set_params(metric="weights")
    assert not torch.equal(weights(blind.fit_transform(found.best_dense_model_)), weights(alone))


def clone_of(estimator):
    from sklearn.base import clone

    return clone(estimator)


def test_the_choice_between_several_that_train(monkeypatch):
    trainings = count_trainings(monkeypatch)
    several = {"one": classifier(), "other": classifier(compressor=TuckerCompressor())}
    space = {"*rank": FloatRange(0.5, 0.9), "*max_epochs": 2}
    found = search(several, space, n_trials=8, sampler="random").fit(MODEL, TRAIN, VALID)
    labels = {row.params["estimator"] for row in found.trials_}
    assert labels == {"one", "other"}
    assert len(trainings) == 1 + 2
    assert accuracy(found.best_model_) == found.best_trial_.found.score


# --- what is not done twice ------------------------------------------------------------


def test_a_trial_with_another_rank_does_not_train(monkeypatch):
    trainings = count_trainings(monkeypatch)
    space = {
        "max_epochs": [2, 3],
        "compressor__rank": FloatRange(0.5, 0.9),
        "compressor__pivot": ...,
    }
    found = search(space=space, n_trials=8).fit(MODEL, TRAIN, VALID)
    kinds = {row.params["max_epochs"] for row in found.trials_}
    assert kinds == {2, 3}
    # The uncompressed one, as the estimator was given, and one for each number of epochs.
    assert sorted(trainings) == [2, 3, 50]
    assert len({row.params["compressor__rank"] for row in found.trials_}) == 8
    assert accuracy(found.best_model_) == found.best_trial_.found.score


@pytest.mark.parametrize("estimator", [classifier, pipeline])
def test_in_threads_as_in_turn(monkeypatch, estimator):
    trainings = count_trainings(monkeypatch)
    before, behind = ("train__", "small__") if estimator is pipeline else ("", "compressor__")
    space = {
        f"{before}regularizer": [None, "nuclear_norm"], f"{before}max_epochs": [2, 3],
        f"{behind}scheme": ["output", "auto"], f"{behind}rank": 0.6,
    }  # fmt: skip
    grid = {n: v for n, v in space.items() if isinstance(v, list)}

    def results(n_jobs, cache_memory=2**28):
        found = search(
            estimator(), space, n_trials=8, n_jobs=n_jobs, sampler=GridSampler(grid, seed=0),
            cache_memory=cache_memory,
        ).fit(MODEL, TRAIN, VALID)  # fmt: skip
        trials = found.study_.trials
        return {str(sorted(t.params.items(), key=str)): t.values for t in trials}, found

    alone, first = results(1)
    assert len(alone) == 8
    assert len(trainings) == 1 + 4
    together, second = results(2)
    assert together == alone
    assert len(trainings) == 2 * (1 + 4)
    assert torch.equal(weights(first.best_model_), weights(second.best_model_))
    # Without memory each trains for itself, to the same effect.
    nothing_kept, third = results(2, 0)
    assert nothing_kept == alone
    assert len(trainings) == 2 * (1 + 4) + 1 + 8 + 1
    assert torch.equal(weights(first.best_model_), weights(third.best_model_))


def test_threads_do_not_wait_for_each_other_for_ever():
    """Trainings whose first epochs are equal, looked at by calibration in turns."""
    space = {"max_epochs": [2, 3, 4], "compressor__rank": 0.6, "compressor__metric": ["fisher"]}
    given = {"space": space, "objectives": "score", "n_trials": 9, "n_jobs": 3, "sampler": "random"}
    found = search(**given, pruner=MedianPruner(100))
    thread = threading.Thread(
        target=found.fit, args=(MODEL, TRAIN, VALID, INPUTS[:20]), daemon=True
    )
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert len(found.trials_) == 9


def test_an_interrupted_study_trains_what_is_left(monkeypatch, tmp_path):
    given = {"storage": f"sqlite:///{tmp_path}/study.db", "study_name": "joint", "n_trials": 3}
    search(**given).fit(MODEL, TRAIN, VALID)
    trainings = count_trainings(monkeypatch)
    found = search(**given, refit=lambda front: 0).fit(MODEL, TRAIN, VALID)
    # The uncompressed one and three trials are known; the chosen one is trained again.
    assert len(trainings) == 1
    assert len(found.study_.trials) == 3
    best = found.best_trial_
    assert best.found.score == accuracy(found.best_model_)
    assert search(**{**given, "n_trials": 4}).fit(MODEL, TRAIN, VALID).trials_[3].number == 3


def test_what_was_trained_takes_no_more_memory_than_allowed(monkeypatch):
    kept = []
    put = Memo.put

    def watched(shared, key, value, **settings):
        put(shared, key, value, **settings)
        kept.append(shared.n_bytes)

    monkeypatch.setattr(Memo, "put", watched)
    search(cache_memory=50_000, n_trials=6).fit(MODEL, TRAIN, VALID)
    assert 10_000 < max(kept) <= 50_000


# --- what is stopped -------------------------------------------------------------------

HOPELESS = {"lr": [1e-2, 1e-9], "max_epochs": 5, "compressor__rank": 0.9}


def one_of_two(**settings):
    """Searches two trials: one that learns, one that does not."""
    return search(
        classifier(batch_size=10), HOPELESS, objectives="score", n_trials=2,
        sampler=GridSampler({"lr": [1e-2, 1e-9]}, seed=1), **settings,
    )  # fmt: skip


def test_scores_after_each_epoch_stop_what_is_hopeless():
    found = one_of_two(pruner=ThresholdPruner(lower=0.55, n_warmup_steps=2))
    trials = found.fit(MODEL, TRAIN, VALID).study_.trials
    by_rate = {trial.params["lr"]: trial for trial in trials}
    assert by_rate[1e-2].state == TrialState.COMPLETE
    assert by_rate[1e-9].state == TrialState.PRUNED
    assert list(by_rate[1e-2].intermediate_values) == [0, 1, 2, 3, 4]
    assert list(by_rate[1e-9].intermediate_values) == [0, 1, 2]
    # The last one is of the network that the trial ends with: compressed.
    assert by_rate[1e-2].intermediate_values[4] == by_rate[1e-2].value
    assert found.best_params_["lr"] == 1e-2


def test_nothing_is_measured_amid_training_where_nobody_asks():
    for settings in ({"pruner": NopPruner()}, {"scoring": lambda network, trial: 0.5}):
        for trial in one_of_two(**settings).fit(MODEL, TRAIN, VALID).study_.trials:
            assert trial.intermediate_values == {}
    trials = search(space=HOPELESS, n_trials=1).fit(MODEL, TRAIN, VALID).study_.trials
    assert trials[0].intermediate_values == {}  # Optuna prunes with one objective only


def test_ranks_out_of_reach_are_given_up_before_the_training(monkeypatch):
    trainings = count_trainings(monkeypatch)
    epochs = []
    begin = SmoothClassifier.on_epoch_begin
    monkeypatch.setattr(
        SmoothClassifier, "on_epoch_begin", lambda *a, **k: epochs.append(1) or begin(*a, **k)
    )
    space = {"max_epochs": 3, "compressor__rank": [0.01, 0.9]}
    sampler = GridSampler({"compressor__rank": [0.01, 0.9]}, seed=0)
    estimator = classifier(max_epochs=1)
    found = search(estimator, space, n_trials=2, sampler=sampler).fit(MODEL, TRAIN, VALID)
    assert Counter(t.state.name for t in found.study_.trials) == {"COMPLETE": 1, "PRUNED": 1}
    assert len(epochs) == 1 + 3
    assert set(trainings) == {1, 3}


# --- what is refused -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimator", "words"),
    [
        (classifier(module=MODEL), "'module' parameter of the SmoothClassifier must be None"),
        (classifier(device="meta"), "'device' parameter of the SmoothClassifier .* 'cpu'"),
        ([classifier(), "svd"], "compressors only, or only what trains"),
        (
            Pipeline([("small", SVDCompressor()), ("train", classifier())]),
            "train before it compresses. Got the SmoothClassifier 'train' after",
        ),
    ],
)
def test_estimators_that_make_no_sense(estimator, words):
    with pytest.raises(InvalidParameterError, match=words):
        search(estimator, None, n_trials=1).fit(MODEL, TRAIN, VALID)


@pytest.mark.parametrize("data", [None, INPUTS, [INPUTS, LABELS, LABELS], {"x": INPUTS}])
def test_data_without_targets(data):
    with pytest.raises(TrainingDataError, match=r"data=\(inputs, targets\)"):
        search().fit(MODEL, data, VALID)


def test_calibration_is_for_what_trains():
    with pytest.raises(CalibrationError, match=r"fit\(model, inputs\)"):
        search(SVDCompressor(), "rank", scoring=accuracy).fit(MODEL, None, None, INPUTS)


def test_what_cannot_be_trained_at_all_is_found_out_at_once():
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        search().fit(MODEL, (TRAIN[0], TRAIN[1][:-1]), VALID)


def test_a_training_that_fails_fails_its_trial():
    space = {"regularizer": ["nuclear_norm"], "max_epochs": 1, "module__hidden": [3]}
    with pytest.warns(FitFailedWarning), pytest.raises(FailedTrialsError, match="TypeError"):
        search(space=space, n_trials=2).fit(MODEL, TRAIN, VALID)


def test_what_only_trains_compresses_nothing():
    found = search(classifier(compressor=None, max_epochs=1), {"lr": ...}, n_trials=2)
    found.fit(MODEL, TRAIN, VALID)
    assert found.best_compressor_ is None
    assert accuracy(found.best_model_) == found.best_trial_.found.score
    with pytest.raises(NoCompressorError, match="only trains"):
        found.transform(MODEL)
