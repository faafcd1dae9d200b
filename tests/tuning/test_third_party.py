"""Objectives, compressors and other plugins of a package made on the spot take part in searches."""

from __future__ import annotations

import sys

import pytest
from search_cases import INPUTS, MODEL, closeness, search
from sklearn.pipeline import Pipeline
from sklearn.utils._param_validation import InvalidParameterError
from torch import nn

from skcompress import ParetoDisplay, Pruner, SVDCompressor, count_parameters, suggest_params
from skcompress.errors import (
    DenseScoreError,
    MissingDataError,
    MissingValidationError,
    PluginTypeError,
    StudyMismatchError,
)
from skcompress.objectives.bytes import Bytes
from skcompress.protocols import Objective
from skcompress.spaces import FloatRange
from skcompress.testing import check_objective

SOURCE = '''
import copy
import torch
from skcompress.protocols import Compressor, DataCriterion, Objective, SparsityAllocation
from skcompress.spaces import FloatRange


class Largest(Objective):
    """The largest output for the validation inputs."""

    direction = "maximize"
    unit = "kV"
    scale = 1e-3
    needs = ("validation",)

    def __init__(self, power=1.0):
        self.power = power

    def measure(self, model, bench):
        inputs, _ = bench.validation
        with torch.no_grad():
            return model(inputs).max() ** self.power


class Halver(Compressor):
    """Keeps `share` of each linear layer's values, and learns nothing else."""

    search_space = {"share": FloatRange(0.1, 0.9)}

    def __init__(self, share=0.5):
        self.share = share

    def fit(self, model, data=None):
        self.seen_ = None if data is None else len(data)
        return self

    def transform(self, model):
        small = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in small.parameters():
                parameter.mul_(torch.arange(len(parameter.flatten())).reshape(parameter.shape)
                               < self.share * parameter.numel())
        return small


class Even(SparsityAllocation):
    """Another one."""

    def divide(self, weights, n_kept):
        raise NotImplementedError


class Seen(DataCriterion):
    """Of the inputs."""

    needs = ("gram",)

    def scores(self, weight, evidence):
        return weight.abs()
'''
POINTS = """
[skcompress.objectives]
peak = strange_methods:Largest
[skcompress.compressors]
halver = strange_methods:Halver
[skcompress.allocations]
even = strange_methods:Even
[skcompress.criteria]
seen = strange_methods:Seen
"""


@pytest.fixture
def strange(tmp_path, monkeypatch):
    """The module of a package that is installed for one test."""
    (tmp_path / "strange_methods.py").write_text(SOURCE)
    info = tmp_path / "strange_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strange-methods\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    import strange_methods

    yield strange_methods
    del sys.modules["strange_methods"]


class Zeros(Objective):
    """Share of weights that are zero."""

    direction = "maximize"

    def measure(self, model, bench):
        values = nn.utils.parameters_to_vector(model.parameters())
        return (values == 0).double().mean()


# --- objectives ------------------------------------------------------------------------


def test_an_installed_objective_is_searched_bounded_shown_and_drawn(strange):
    given = {"objectives": ("score", "peak"), "constraints": "peak >= 0.2 * dense", "n_trials": 5}
    found = search(**given).fit(MODEL, validation=(INPUTS, None))
    assert found.objectives_ == tuple(found.study_.metric_names) == ("score", "peak")
    assert [d.name for d in found.study_.directions] == ["MAXIMIZE", "MAXIMIZE"]
    for row, trial in zip(found.trials_, found.study_.trials, strict=True):
        small = SVDCompressor(**row.params).fit_transform(MODEL).eval()
        assert row.found.peak == trial.user_attrs["peak"] == trial.values[1]
        assert row.found.peak == small(INPUTS).max().item()
        assert row.feasible == (row.found.peak >= 0.2 * found.dense_.peak)
    lines = str(found.trials_).splitlines()
    assert "peak, kV" in lines[0]
    assert f"{found.dense_.peak / 1e3:.5g}" in lines[2]
    axes = ParetoDisplay.from_search(found, x="n_parameters", y="peak").ax_
    assert axes.get_ylabel() == "peak, kV"
    check_objective(strange.Largest())


def test_what_nobody_asked_for_is_not_measured(strange):
    found = search(n_trials=1).fit(MODEL, validation=(INPUTS, None))
    assert not hasattr(found.dense_, "peak")


def test_instances_are_objectives_and_constraints_by_the_names_of_their_classes():
    estimator, space = Pruner(), {"sparsity": FloatRange(0.2, 0.9)}
    given = {"estimator": estimator, "space": space, "objectives": ("score", Zeros())}
    found = search(**given, constraints=[(Bytes(), "<= dense"), "zeros >= 0.5"]).fit(MODEL)
    assert [c.text for c in found.constraints_] == ["bytes <= dense", "zeros >= 0.5"]
    assert found.best_trial_.found.zeros >= 0.5 > found.dense_.zeros
    assert {row.feasible for row in found.trials_} == {True, False}


def test_settings_of_an_objective_belong_to_the_study(strange, tmp_path):
    given = {"storage": f"sqlite:///{tmp_path}/study.db", "study_name": "mine", "n_trials": 1}
    data = (MODEL, None, (INPUTS, None))
    search(**given, objectives=("score", strange.Largest())).fit(*data)
    with pytest.raises(StudyMismatchError, match=r"'Largest\(\)'.*has .*'Largest\(power=2\)'"):
        search(**given, objectives=("score", strange.Largest(power=2))).fit(*data)


class Unnamed(Zeros):
    name = "ranks"


class Broken(Zeros):
    def measure(self, model, bench):
        return float("nan")


class Hungry(Zeros):
    needs = ("data",)


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"objectives": ("score", Zeros)}, PluginTypeError, "pass an instance of it"),
        ({"objectives": (Zeros(), Zeros())}, InvalidParameterError, "different names"),
        ({"objectives": Unnamed()}, InvalidParameterError, "'name' of Unnamed .* Got 'ranks'"),
        ({"objectives": Hungry()}, MissingDataError, "objective 'hungry' of CompressionSearch"),
        ({"objectives": "peak"}, MissingValidationError, r"objective 'peak' of .*validation="),
        ({"objectives": Broken()}, DenseScoreError, "objective 'broken' must give a finite number"),
    ],
)
def test_objectives_that_make_no_sense(strange, settings, error, words):
    with pytest.raises(error, match=words):
        search(**settings).fit(MODEL)


def test_who_scores_spoils_no_other_number():
    def meddling(small):
        value = closeness(small)
        for parameter in small.parameters():
            nn.init.zeros_(parameter)
        return value

    found = search(scoring=meddling, objectives=("score", Zeros()), n_trials=2).fit(MODEL)
    assert found.dense_.zeros == max(row.found.zeros for row in found.trials_) == 0


# --- compressors, and what others choose among -----------------------------------------


def test_a_compressor_with_fit_and_transform_only(strange):
    found = search(estimator="halver", space=None, n_trials=4).fit(MODEL, INPUTS)
    assert found.best_params_.keys() == {"share"}
    assert found.best_compressor_.seen_ == len(INPUTS)
    assert found.best_trial_.found.score == closeness(found.best_model_.eval())
    for trial in found.study_.trials:
        assert "ranks" not in trial.user_attrs
        assert "error" not in trial.user_attrs


def test_it_stands_beside_ours_in_pipelines_and_choices(strange):
    pipeline = Pipeline([("small", SVDCompressor(0.8)), ("zeros", strange.Halver())])
    found = search(estimator=pipeline, space=["small__rank", "zeros__*"], n_trials=3)
    found.set_params(space={"small__rank": FloatRange(0.6, 0.9), "zeros__share": ...})
    found.fit(MODEL, INPUTS)
    assert found.best_params_.keys() == {"small__rank", "zeros__share"}
    assert set(found.study_.trials[0].user_attrs["ranks"]) <= {"0", "3", "4"}
    assert count_parameters(found.best_model_) < count_parameters(MODEL)
    several = search(
        estimator=["svd", "halver"], space={"*rank": 0.8, "*share": ...}, sampler="random",
        n_trials=8,
    ).fit(MODEL)  # fmt: skip
    assert {row.params["estimator"] for row in several.trials_} == {"svd", "halver"}


def test_allocations_and_criteria_of_others_are_drawn(strange):
    class Asked:
        def suggest_categorical(self, name, choices):
            seen[name] = choices
            return choices[0]

        def suggest_float(self, name, low, high, *, log):
            return low

    for with_data in (False, True):
        seen: dict[str, tuple] = {}
        suggest_params(Asked(), Pruner(), with_data=with_data)
        assert "even" in seen["allocation"]
        assert ("rd" in seen["allocation"]) == with_data  # which measures distortion on data
        assert ({"seen", "wanda", "obs"} <= set(seen["criterion"])) == with_data
        assert "lamp" in seen["criterion"]
        assert "energy" not in seen["allocation"]  # of ranks, not of zeros
