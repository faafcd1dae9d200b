"""What a search finds, keeps and leaves alone."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from models import seeded
from search_cases import INPUTS, MODEL, closeness, network, search
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from torch import nn
from torch.utils.data import DataLoader

from skcompress import SVDCompressor, TuckerCompressor, count_bytes, count_flops, count_parameters
from skcompress.spaces import FloatRange, IntRange
from skcompress.testing import check_untouched, snapshot
from skcompress.tuning.pareto import nondominated


@pytest.fixture(scope="module")
def found():
    return search(n_trials=12).fit(MODEL)


def test_rows_are_what_was_measured(found):
    assert len(found.trials_) == len(found.study_.trials) == 12
    for row, trial in zip(found.trials_, found.study_.trials, strict=True):
        assert (row.number, row.params) == (trial.number, trial.params)
        assert trial.values == [row.found.score, row.found.n_parameters]
        small = SVDCompressor(**row.params).fit_transform(MODEL).eval()
        assert row.found.score == closeness(small)
        assert row.found.n_parameters == count_parameters(small)
        assert row.found.bytes == count_bytes(small)
        assert trial.user_attrs["ranks"] == SVDCompressor(**row.params).fit(MODEL).ranks_
        assert row.seconds > 0
        assert row.found.latency is row.found.flops is None  # there is nothing to run it on


def test_front_is_what_no_other_trial_beats_best_first(found):
    losses = np.array([[-r.found.score, r.found.n_parameters] for r in found.trials_])
    expected = {found.trials_[i].number for i in np.flatnonzero(nondominated(losses))}
    assert {row.number for row in found.pareto_front_} == expected
    assert {t.number for t in found.study_.best_trials} >= expected
    scores = [row.found.score for row in found.pareto_front_]
    assert scores == sorted(scores, reverse=True)
    assert found.best_trial_ == found.pareto_front_[0]


def test_what_was_chosen_is_built_and_is_what_the_trial_had(found):
    assert found.best_params_ == found.best_trial_.params
    assert found.best_compressor_.rank == found.best_params_["rank"]
    assert found.best_compressor_.n_parameters_out_ == found.best_trial_.found.n_parameters
    assert found.best_model_.training == MODEL.training
    assert closeness(clone_in_eval(found.best_model_)) == found.best_trial_.found.score
    later = found.transform(network(1))
    assert count_parameters(later) == count_parameters(found.best_model_)
    assert count_parameters(found.inverse_transform(later)) == count_parameters(MODEL)


def clone_in_eval(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model).eval()


def test_what_is_random_is_refitted_with_the_seed_of_its_trial():
    # Anything that draws random numbers: here calibration on some positions only.
    compressor = SVDCompressor(max_positions=10)
    given = {"estimator": compressor, "space": ["rank", "metric", "fold_norm"]}
    one = search(**given, n_trials=5, random_state=None).fit(MODEL, INPUTS)
    seeds = {trial.user_attrs["random_state"] for trial in one.study_.trials}
    assert {one.best_compressor_.random_state} == seeds
    assert closeness(one.best_model_.eval()) == one.best_trial_.found.score


def test_model_and_randomness_stay_as_they_were():
    model = network().train()
    model[0].register_forward_hook(lambda *_: None)
    before, state = snapshot(model), torch.random.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()

    def meddling(small: nn.Module) -> float:
        """Change the model that is to be scored."""
        assert not small.training
        with torch.no_grad():
            for parameter in small.parameters():
                parameter.mul_(0)
        return small(INPUTS).sum().item()

    loader = DataLoader(INPUTS, batch_size=10, shuffle=True)
    search(scoring=meddling, n_trials=2, sampler="nsgaii").fit(model, loader)
    check_untouched("after a search", model, before)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()

    def failing(small: nn.Module) -> float:
        raise OSError("disk full")

    with pytest.raises(ValueError, match="disk full"):
        search(scoring=failing).fit(model)
    check_untouched("after an error", model, before)


def test_patterns_with_ranges_are_searched():
    several = {"svd": SVDCompressor(), "tucker": TuckerCompressor()}
    space = {"*rank": FloatRange(0.5, 0.6), "*.scheme": "output"}
    one = search(estimator=several, space=space, sampler="random", n_trials=8).fit(MODEL)
    names = {name for trial in one.study_.trials for name in trial.params}
    assert names == {"estimator", "estimator.svd.rank", "estimator.tucker.rank"}
    ranks = [v for row in one.trials_ for n, v in row.params.items() if n != "estimator"]
    assert all(0.5 <= rank <= 0.6 for rank in ranks)


@pytest.mark.parametrize("sampler", [None, "nsgaii", "random"])
def test_the_same_seed_gives_the_same_study(sampler):
    def params(seed):
        study = search(sampler=sampler, random_state=seed, n_trials=15, space=["rank", "scheme"])
        return [(t.params, t.values) for t in study.fit(MODEL).study_.trials]

    first = params(3)
    assert params(3) == first
    assert params(4) != first
    assert params(np.random.RandomState(3)) == first


def test_counts_of_one_input_and_times():
    given = {"objectives": ("score", "flops", "bytes", "latency"), "n_trials": 3}
    one = search(**given).fit(MODEL, INPUTS)
    row = one.best_trial_
    assert row.found.flops == count_flops(one.best_model_, INPUTS[:1])
    assert one.dense_.flops == count_flops(MODEL, INPUTS[:1])
    assert 0 < row.found.latency < 0.1
    # Of anything but an array, the first batch.
    one = search(**given).fit(MODEL, [INPUTS[:7], INPUTS[7:]])
    assert one.dense_.flops == count_flops(MODEL, INPUTS[:7])
    trial = one.study_.trials[0]
    assert trial.values == [trial.user_attrs[name] for name in given["objectives"]]
    assert trial.user_attrs["latency_contended"] is False


def test_latency_is_measured_alone_and_marked_where_other_processes_work(monkeypatch):
    from skcompress.objectives import latency

    scoring, beside = 0, []

    def slow(small: nn.Module) -> float:
        nonlocal scoring
        scoring += 1
        threading.Event().wait(0.01)
        scoring -= 1
        return closeness(small)

    def watched(*_: object, **__: object) -> float:
        beside.append(scoring)
        threading.Event().wait(0.01)
        beside.append(scoring)
        return 1e-3

    monkeypatch.setattr(latency, "measure_latency", watched)
    sought = search(scoring=slow, objectives=("score", "latency"), n_jobs=4, n_trials=8)
    sought.fit(MODEL, INPUTS)
    assert beside == [0] * 18  # the dense model's among them
    assert not any(t.user_attrs["latency_contended"] for t in sought.study_.trials)

    storage = sought.study_._storage
    again = search(
        objectives=("score", "latency"), storage=storage, study_name="x", n_trials=1
    ).fit(MODEL, INPUTS)
    assert not again.study_.trials[0].user_attrs["latency_contended"]
    again.study_.ask()  # as another process does, which is then at work
    again.set_params(n_trials=2).fit(MODEL, INPUTS)
    assert again.study_.trials[-1].user_attrs["latency_contended"]


def test_latency_stands_in_the_front_though_nobody_asked():
    one = search(n_trials=3).fit(MODEL, INPUTS)
    assert all(row.found.latency > 0 and not row.contended for row in one.pareto_front_)
    assert one.dense_.latency > 0
    assert "ms" in str(one.pareto_front_)
    assert "~" not in str(one.pareto_front_)


def test_latency_that_nobody_asked_for_keeps_no_thread_waiting():
    both = threading.Barrier(2, timeout=60)

    def together(small: nn.Module) -> float:
        if count_parameters(small) < count_parameters(MODEL):
            both.wait()  # which two trials only pass at a time
        return closeness(small)

    rank = FloatRange(0.3, 0.6)
    one = search(space={"rank": rank}, scoring=together, n_jobs=2, n_trials=2).fit(MODEL, INPUTS)
    assert any(row.contended for row in one.trials_)
    assert "~" in str(one.trials_)


def test_threads_find_what_one_finds():
    one = search(sampler="random", n_trials=10, n_jobs=4, space=["rank", "scheme"])
    one.fit(MODEL, INPUTS)
    assert len(one.study_.trials) == 10
    for row in one.trials_:
        small = SVDCompressor(**row.params).fit_transform(MODEL, INPUTS).eval()
        assert row.found.n_parameters == count_parameters(small)
        assert row.found.flops == count_flops(small, INPUTS[:1])
        assert row.found.score == pytest.approx(closeness(small), rel=1e-3, abs=1e-6)


# --- what is searched ------------------------------------------------------------------


def test_names_mappings_and_everything():
    declared = set(search(space=None).fit(MODEL).best_params_)
    assert {"rank", "scheme", "allocation", "pivot"} <= declared
    assert not declared & {"metric", "reconstruction"}  # which need data
    assert set(search(space=None).fit(MODEL, INPUTS).best_params_) > declared
    assert set(search(space=["rank", "sch*"], n_trials=1).fit(MODEL).best_params_) == {
        "rank",
        "scheme",
    }
    given = {"rank": IntRange(2, 3), "scheme": ["output", "input"], "pivot": True, "alloc*": ...}
    found = search(space=given, n_trials=8).fit(MODEL)
    assert set(found.best_params_) == {"rank", "scheme", "pivot", "allocation"}
    assert {row.params["rank"] for row in found.trials_} == {2, 3}
    assert {row.params["scheme"] for row in found.trials_} == {"output", "input"}
    assert found.best_compressor_.pivot is True


def test_a_rank_for_each_group_of_layers():
    space = {"rank": {"0": FloatRange(0.3, 0.9), "3": FloatRange(0.3, 0.9)}}
    found = search(space=space, n_trials=8).fit(MODEL)
    assert set(found.trials_[0].params) == {"rank.0", "rank.3"}
    plan = found.best_compressor_.plan_
    for name in ("0", "3"):
        asked = found.best_params_["rank"][name]
        assert plan[name].rank is None or plan[name].after <= asked * plan[name].before
    assert "no pattern" in plan["4"].reason


def test_a_pipeline():
    pipeline = Pipeline(
        [("first", SVDCompressor(layers="0")), ("rest", SVDCompressor(exclude="0"))]
    )
    space = {"first__rank": IntRange(1, 6), "rest__rank": IntRange(1, 6)}
    found = search(estimator=pipeline, space=space, n_trials=5).fit(MODEL, INPUTS)
    assert isinstance(found.best_compressor_, Pipeline)
    assert found.best_compressor_["first"].ranks_ == {"0": found.best_params_["first__rank"]}
    assert closeness(found.best_model_.eval()) == found.best_trial_.found.score


@pytest.mark.parametrize(
    "several", [["svd", TuckerCompressor()], {"svd": SVDCompressor(), "other": "tucker"}]
)
def test_the_choice_between_compressors(several):
    model = seeded(lambda: nn.Sequential(nn.Conv2d(4, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)))

    def score(small: nn.Module) -> float:
        return small(torch.ones(1, 4, 8, 8)).sum().item()

    found = search(
        estimator=several, space="*rank", scoring=score, n_trials=10, sampler="random"
    ).fit(model)
    chosen = {row.params["estimator"] for row in found.trials_}
    assert chosen == (
        {"svd", "other"} if isinstance(several, dict) else {"svd", "TuckerCompressor"}
    )
    label = found.best_trial_.params["estimator"]
    kind = SVDCompressor if label == "svd" else TuckerCompressor
    assert type(found.best_compressor_) is type(found.best_params_["estimator"]) is kind
    assert found.best_compressor_.rank == found.best_trial_.params[f"estimator.{label}.rank"]


# --- which is chosen -------------------------------------------------------------------


def test_the_knee_or_what_a_function_says(found):
    front = found.pareto_front_
    losses = np.array([[-row.found.score, row.found.n_parameters] for row in front])
    scaled = (losses - losses.min(0)) / np.ptp(losses, axis=0)
    middle = search(n_trials=12, refit="knee").fit(MODEL)
    assert middle.best_trial_.number == front[int(scaled.sum(1).argmin())].number
    assert middle.best_trial_.number not in (front[0].number, front[-1].number)

    def smallest(front) -> int:
        return int(np.argmin([row.found.n_parameters for row in front]))

    last = search(n_trials=12, refit=smallest).fit(MODEL)
    assert last.best_trial_.number == front[-1].number
    assert count_parameters(last.best_model_) == front[-1].found.n_parameters


def test_one_objective_has_one_best():
    found = search(objectives="score", n_trials=6).fit(MODEL)
    assert len(found.pareto_front_) == 1
    assert found.best_trial_.number == found.study_.best_trial.number


# --- as an estimator, and as a table ---------------------------------------------------


def test_it_is_an_estimator():
    sought = search(n_jobs=1)
    assert "CompressionSearch" in repr(sought)
    again = clone(sought).set_params(n_trials=1, estimator__rank=0.4, space="scheme")
    assert again.get_params()["estimator__rank"] == 0.4
    assert count_parameters(again.fit_transform(MODEL)) <= 0.4 * count_parameters(MODEL)
    assert sought.estimator.rank == 0.3


def test_tables_for_people_and_for_pandas(found):
    table = found.pareto_front_
    frame = table.to_pandas()
    assert list(frame["score"]) == [row.found.score for row in table]
    assert {"trial", "n_parameters", "bytes", "seconds", "feasible", "rank"} <= set(frame.columns)
    lines = str(table).splitlines()
    assert lines[0].split() == ["trial", "score", "parameters", "bytes", "rank"]
    assert lines[2].split()[:3] == ["dense", "-0", "859"]
    assert len(lines) == 3 + len(table)
    assert table._repr_html_().startswith("<table>")


def test_the_bar_shows_the_best_so_far(capsys):
    found = search(verbose=1).fit(MODEL)
    shown = capsys.readouterr().err
    best = found.best_trial_.found
    assert f"best score {best.score:.4g}, parameters {best.n_parameters}" in shown
    assert "6/6" in shown
    assert "[I " not in shown  # no lines of Optuna's own
    search().fit(MODEL)
    assert capsys.readouterr().err == ""
