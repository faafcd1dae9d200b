"""Training and compression in one study: what is stored, stopped, resumed and had again."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState
from sklearn.base import clone

from skcompress import count_parameters
from skcompress.errors import BudgetError
from skcompress.spaces import FloatRange, IntRange
from skcompress.tuning import suggest_estimator, suggest_params

pytest.importorskip("skorch")

from skcompress import SmoothClassifier

GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(200, 12, generator=GENERATOR).numpy()
LABELS = INPUTS[:, :3].argmax(1)
ONLY = ["regularizer", "regularizer.*.weight", "max_epochs", "compressor__rank"]
OVERRIDE = {
    "regularizer": [None, "nuclear_norm", "schatten"],
    "max_epochs": IntRange(2, 3),
    "compressor__rank": FloatRange(0.3, 0.8),
}


def classifier(**parameters):
    return SmoothClassifier(
        module__hidden=16, compressor="svd", lr=1e-2, max_epochs=3, random_state=0, **parameters
    )


def test_all_penalties_and_compressors_of_the_classifier():
    """What is declared without any narrowing trains and compresses."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(8):
        trial = study.ask()
        searched = suggest_estimator(trial, classifier(), override={"max_epochs": 1})
        name = trial.params["regularizer"]
        weight = trial.params[f"regularizer.{name}.weight"]
        assert searched.get_params()["regularizer__weight"] == weight
        try:
            searched.fit(INPUTS, LABELS)
        except BudgetError:
            continue
        assert searched.regularizer_.weight == weight
        assert searched.compressor_.rank == trial.params["compressor__rank"]
        assert count_parameters(searched.module_) <= count_parameters(searched.dense_module_)


def test_any_trial_can_be_had_again():
    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=optuna.samplers.RandomSampler(seed=1)
    )

    def objective(trial):
        searched = clone(classifier())
        searched.set_params(**suggest_params(trial, searched, only=ONLY, override=OVERRIDE))
        searched.fit(INPUTS, LABELS)
        return searched.score(INPUTS, LABELS), count_parameters(searched.module_)

    study.optimize(objective, n_trials=5)
    for trial in study.best_trials:
        again = suggest_estimator(trial, classifier(), only=ONLY, override=OVERRIDE)
        again.fit(INPUTS, LABELS)
        values = again.score(INPUTS, LABELS), count_parameters(again.module_)
        assert np.allclose(values, trial.values)


def test_settings_of_an_earlier_penalty_are_not_taken_along():
    """Each trial's clone has the settings of its own penalty only."""
    override = {**OVERRIDE, "regularizer": ["nuclear_norm", "schatten"]}
    for _ in range(2):
        for name in ("schatten", "nuclear_norm"):
            trial = optuna.trial.FixedTrial({
                "regularizer": name, f"regularizer.{name}.weight": 1e-3,
                f"regularizer.{name}.p": 0.5, f"regularizer.{name}.scheme": "output",
                "max_epochs": 2, "compressor__rank": 0.5,
            })  # fmt: skip
            only = [*ONLY, "regularizer.*"]
            searched = suggest_estimator(trial, classifier(), only=only, override=override)
            searched.fit(INPUTS, LABELS)
            assert type(searched.regularizer_).__name__.lower().startswith(name[:7])


def test_pruner_stops_hopeless_trials():
    integration = pytest.importorskip("optuna_integration")
    from skorch.dataset import ValidSplit

    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(1))
    rates = iter([1e-2, 1e-7])

    def objective(trial):
        searched = classifier(
            train_split=ValidSplit(4, stratified=True),
            callbacks=[integration.SkorchPruningCallback(trial, "valid_acc")],
        )
        parameters = suggest_params(trial, searched, only="lr", override={"lr": next(rates)})
        searched.set_params(**parameters, max_epochs=6).fit(INPUTS, LABELS)
        return searched.history[-1, "valid_acc"]

    study.optimize(objective, n_trials=2)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE, TrialState.PRUNED]
    assert len(study.trials[0].intermediate_values) == 6
    assert len(study.trials[1].intermediate_values) < 6


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("pruning", [False, True])
def test_optuna_search_cv(pruning):
    integration = pytest.importorskip("optuna_integration")
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    search = integration.OptunaSearchCV(
        classifier(),
        {
            "regularizer": CategoricalDistribution(["nuclear_norm", "first_difference"]),
            "regularizer__weight": FloatDistribution(1e-4, 1e-2, log=True),
            "compressor__rank": FloatDistribution(0.4, 0.8),
        },
        cv=2,
        n_trials=3,
        enable_pruning=pruning,
        max_iter=2,
        random_state=0,
    )
    search.fit(INPUTS, LABELS)
    best = search.best_estimator_
    assert len(search.study_.trials) == 3
    assert best.compressor_.rank == search.best_params_["compressor__rank"]
    assert best.regularizer_.weight == search.best_params_["regularizer__weight"]
    assert search.predict(INPUTS).shape == (200,)


PROGRAM = """
import os, signal, sys
import optuna
import torch
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState
from torch import nn

from skcompress import SVDCompressor, count_parameters, suggest_params
from skcompress.spaces import FloatRange

storage, n_until_killed = sys.argv[1], int(sys.argv[2])
model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 30))


def objective(trial):
    rank = FloatRange(0.3, 0.9)
    params = suggest_params(trial, SVDCompressor(), only="scheme", override={"rank": rank})
    if trial.number == n_until_killed:
        os.kill(os.getpid(), signal.SIGKILL)
    small = SVDCompressor().set_params(**params).fit_transform(model)
    return count_parameters(small)


study = optuna.create_study(study_name="s", storage=storage, load_if_exists=True)
study.optimize(objective, callbacks=[MaxTrialsCallback(6, states=(TrialState.COMPLETE,))])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_search_is_resumed(tmp_path):
    storage = f"sqlite:///{tmp_path}/study.db"

    def run(n_until_killed):
        arguments = [sys.executable, "-c", textwrap.dedent(PROGRAM), storage, str(n_until_killed)]
        return subprocess.run(arguments, capture_output=True, text=True, check=False)

    assert run(3).returncode < 0
    before = optuna.load_study(study_name="s", storage=storage)
    assert [t.state.name for t in before.trials] == ["COMPLETE"] * 3 + ["RUNNING"]
    kept = [(t.params, t.values) for t in before.trials[:3]]
    done = run(-1)
    assert done.returncode == 0, done.stderr
    after = optuna.load_study(study_name="s", storage=storage)
    assert [(t.params, t.values) for t in after.trials[:3]] == kept
    states = [t.state for t in after.trials]
    assert states.count(TrialState.COMPLETE) == 6
    assert [t.number for t in after.trials] == list(range(7))
    assert {tuple(t.params) for t in after.trials} == {("rank", "scheme")}
