"""What cannot be searched, and what goes wrong in a trial."""

from __future__ import annotations

import pytest
import torch
from search_cases import INPUTS, MODEL, closeness, search
from sklearn.exceptions import FitFailedWarning, NotFittedError
from sklearn.utils._param_validation import InvalidParameterError
from torch import nn

from skcompress import SVDCompressor
from skcompress.errors import (
    DenseScoreError,
    EstimatorTypeError,
    FailedTrialsError,
    MissingDataError,
    ModelTypeError,
    OneShotDataError,
    UnknownNameError,
    UnknownParameterError,
)
from skcompress.spaces import FloatRange


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objectives": ()}, "objectives"),
        ({"objectives": ("score", "score")}, r"different names .*Got \('score', 'score'\)"),
        ({"n_trials": 0}, "n_trials"),
        ({"n_trials": None}, "never end"),
        ({"timeout": 0}, "timeout"),
        ({"n_jobs": 0}, "n_jobs"),
        ({"sampler": "grid"}, "sampler"),
        ({"refit": "first"}, "refit"),
        ({"refit": lambda front: 99}, r"index of a front of \d+ trials.*Got 99"),
        ({"refit": lambda front: "a"}, "Got 'a'"),
        ({"scoring": None}, "scoring"),
        ({"estimator": []}, "estimator"),
        ({"estimator": ["svd", "svd"]}, "different names"),
    ],
)
def test_settings(settings, words):
    with pytest.raises(InvalidParameterError, match=words):
        search(**settings).fit(MODEL)


def test_unknown_names():
    with pytest.raises(UnknownNameError, match="did you mean 'n_parameters'"):
        search(objectives=("score", "parameters")).fit(MODEL)
    with pytest.raises(UnknownNameError, match="did you mean 'tucker'"):
        search(estimator="tuker").fit(MODEL)
    with pytest.raises(ValueError, match="'acuracy' is not a valid scoring"):
        search(scoring="acuracy").fit(MODEL)
    with pytest.raises(UnknownParameterError, match="'ranks'"):
        search(space="ranks").fit(MODEL)
    with pytest.raises(UnknownParameterError, match=r"'metric'.*needs data"):
        search(space=["rank", "metric"]).fit(MODEL)


@pytest.mark.parametrize("estimator", [SVDCompressor, 3, nn.Linear(2, 2)])
def test_what_is_no_estimator(estimator):
    with pytest.raises(EstimatorTypeError):
        search(estimator=estimator).fit(MODEL)


def test_models_and_data():
    with pytest.raises(ModelTypeError):
        search().fit(nn.Linear)
    with pytest.raises(OneShotDataError):
        search().fit(MODEL, iter([INPUTS]))
    for name in ("flops", "latency"):
        with pytest.raises(MissingDataError, match=name):
            search(objectives=("score", name)).fit(MODEL)
        with pytest.raises(MissingDataError, match=name):
            search(constraints=f"{name} <= 0.5 * dense").fit(MODEL)
    with pytest.raises(NotFittedError):
        search().transform(MODEL)


# --- scores ----------------------------------------------------------------------------


class Scoring:
    """Scores well, but for the calls that are numbered: these give or raise `bad`."""

    def __init__(self, bad: object, calls: range):
        self.bad, self.calls, self.n = bad, calls, -1

    def __call__(self, model: nn.Module) -> object:
        self.n += 1
        if self.n not in self.calls:
            return closeness(model)
        if isinstance(self.bad, Exception):
            raise self.bad
        return self.bad


BAD = [
    (RuntimeError("out of coffee"), "RuntimeError: out of coffee"),
    (float("nan"), "ScoreError: scoring must give a finite number; got nan"),
    (float("-inf"), "got -inf"),
    (torch.zeros(3), "got tensor"),
    (None, "got None"),
]


@pytest.mark.parametrize(("bad", "words"), BAD)
def test_one_bad_score_fails_one_trial(bad, words):
    # The first call is for the uncompressed model.
    sought = search(scoring=Scoring(bad, range(3, 4)), n_trials=5)
    with pytest.warns(FitFailedWarning, match="1 trials failed"):
        sought.fit(MODEL)
    states = [trial.state.name for trial in sought.study_.trials]
    assert states == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    failed = sought.study_.trials[2].user_attrs
    assert words in failed["error"]
    assert failed["n_parameters"] > 0  # what was known by then
    assert [row.number for row in sought.trials_] == [0, 1, 3, 4]


@pytest.mark.parametrize(("bad", "words"), BAD)
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_where_all_fail_the_first_cause_is_told(bad, words, n_jobs):
    sought = search(scoring=Scoring(bad, range(1, 99)), n_trials=4, n_jobs=n_jobs)
    with pytest.warns(FitFailedWarning), pytest.raises(FailedTrialsError) as error:
        sought.fit(MODEL)
    assert "all 4 trials" in str(error.value)
    assert words in str(error.value)
    if isinstance(bad, Exception):
        assert error.value.__cause__ is bad


@pytest.mark.parametrize(("bad", "words"), BAD)
def test_a_scorer_that_never_works_is_found_out_at_once(bad, words):
    scoring = Scoring(bad, range(99))
    with pytest.raises(DenseScoreError) as error:
        search(scoring=scoring).fit(MODEL)
    assert words in str(error.value)
    assert scoring.n == 0


def test_ranks_out_of_reach_are_given_up_and_avoided():
    # The fewest parameters are next to what cannot be had.
    given = {"space": {"rank": FloatRange(0.01, 0.95)}, "objectives": "n_parameters"}
    trials = search(**given, n_trials=40).fit(MODEL).study_.trials
    given_up = [trial.state.name == "PRUNED" for trial in trials]
    assert 0 < sum(given_up[20:]) < 10
    for trial in trials:
        assert ("BudgetError" in trial.user_attrs.get("error", "")) == given_up[trial.number]
    with pytest.raises(FailedTrialsError, match="BudgetError"):
        search(space={"rank": FloatRange(0.01, 0.02)}).fit(MODEL)


def test_no_time_for_a_trial():
    with pytest.raises(FailedTrialsError, match="longer timeout"):
        search(timeout=1e-9).fit(MODEL)
