"""Scorers: functions, functions that report, and scikit-learn's names."""

from __future__ import annotations

import numpy as np
import optuna
import pytest
import torch
from search_cases import INPUTS, MODEL, OUTPUTS, closeness, search
from sklearn.metrics import accuracy_score, log_loss, r2_score, roc_auc_score
from torch import nn

from skcompress.errors import MissingValidationError, ValidationShapeError
from skcompress.tuning.scoring import make_scorer

LABELS = (OUTPUTS - OUTPUTS.mean(0)).argmax(1)  # of three classes


def logits(model: nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(INPUTS).double().numpy()


@pytest.fixture(scope="module")
def network():
    from search_cases import network

    return network(1).eval()


@pytest.mark.parametrize(
    "labels", [LABELS, LABELS.numpy(), LABELS.tolist(), np.array(["x", "y", "z"])[LABELS]]
)
def test_accuracy_of_labels_of_any_kind(network, labels):
    found = make_scorer("Search", "accuracy", (INPUTS, labels))(network, None)
    assert found == accuracy_score(LABELS, logits(network).argmax(1))


def test_classes_that_validation_has_none_of(network):
    few = LABELS[0] == LABELS
    score = make_scorer("Search", "accuracy", (INPUTS[few], LABELS[few]))
    assert score(network, None) == (logits(network)[few].argmax(1) == int(LABELS[0])).mean()


def test_probabilities(network):
    found = make_scorer("Search", "neg_log_loss", (INPUTS, LABELS))(network, None)
    softmax = torch.from_numpy(logits(network)).softmax(1).numpy()
    assert found == pytest.approx(-log_loss(LABELS, softmax))


def test_two_classes_by_their_difference():
    model = nn.Linear(16, 2)
    labels = INPUTS[:, 0].numpy() > 0
    found = make_scorer("Search", "roc_auc", (INPUTS, labels))(model, None)
    given = logits(model)
    assert found == pytest.approx(roc_auc_score(labels, given[:, 1] - given[:, 0]))


@pytest.mark.parametrize("columns", [1, 3])
def test_values(columns):
    model = nn.Linear(16, columns)
    targets = INPUTS[:, :columns].squeeze(1).numpy()
    found = make_scorer("Search", "r2", (INPUTS, targets))(model, None)
    assert found == pytest.approx(r2_score(targets, logits(model).squeeze()))


def test_a_name_in_a_search():
    found = search(scoring="accuracy", n_trials=4).fit(MODEL, validation=(INPUTS, LABELS))
    assert found.dense_.score == accuracy_score(LABELS, OUTPUTS.argmax(1))
    for row in found.trials_:
        small = found.estimator.set_params(**row.params).fit_transform(MODEL).eval()
        assert row.found.score == accuracy_score(LABELS, logits(small).argmax(1))
    assert found.dense_.flops is not None  # measured with a validation input


@pytest.mark.parametrize("validation", [None, INPUTS, (INPUTS,), "xy"])
def test_a_name_without_arrays(validation):
    with pytest.raises(MissingValidationError, match=r"validation=\(inputs, targets\)"):
        search(scoring="accuracy").fit(MODEL, validation=validation)


@pytest.mark.parametrize(
    ("targets", "words"),
    [(LABELS[:7], "7 targets, and the network gives 40 rows"),
     (np.arange(40) % 5 * 1.5 // 0.5, "labels of 5 classes")],
)  # fmt: skip
def test_targets_that_do_not_fit_the_outputs(targets, words):
    with pytest.raises(ValueError, match=words) as error:
        search(scoring="accuracy").fit(MODEL, validation=(INPUTS, targets))
    assert isinstance(error.value.__cause__, ValidationShapeError)


def test_a_scorer_that_reports_can_be_stopped_by_a_pruner():
    def reporting(model: nn.Module, trial) -> float:
        for step in range(3):
            trial.report(closeness(model), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return closeness(model)

    pruner = optuna.pruners.ThresholdPruner(lower=-0.01)
    found = search(scoring=reporting, objectives="score", pruner=pruner, n_trials=12).fit(MODEL)
    states = {trial.state.name for trial in found.study_.trials}
    assert states == {"COMPLETE", "PRUNED"}
    assert all(row.found.score >= -0.01 for row in found.trials_)
    assert len(found.study_.trials) == 12
