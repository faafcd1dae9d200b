"""Conditions as people write them, and searches that have to meet them."""

from __future__ import annotations

import pytest
from search_cases import MODEL, closeness, search

from skcompress import CompressionSearch
from skcompress.errors import ConstraintError, UnsatisfiedConstraintError
from skcompress.tuning.constraints import parse
from skcompress.tuning.measuring import Measurement

DENSE = Measurement(score=0.9, n_parameters=1000, flops=500, bytes=4000, latency=0.01)


@pytest.mark.parametrize(
    ("text", "bound", "met", "missed"),
    [
        ("score >= 0.8", 0.8, {"score": 0.8}, {"score": 0.79}),
        ("score>=dense-0.01", 0.89, {"score": 0.89}, {"score": 0.8899}),
        ("score >= dense", 0.9, {"score": 0.9}, {"score": 0.8}),
        ("score >= .5 * dense", 0.45, {"score": 0.46}, {"score": 0.44}),
        ("n_parameters <= 3e2", 300, {"n_parameters": 300}, {"n_parameters": 301}),
        ("flops <= 0.5*dense", 250, {"flops": 250}, {"flops": 251}),
        ("bytes <= dense + 10", 4010, {"bytes": 4010}, {"bytes": 4011}),
        (" latency <= 0.002 ", 0.002, {"latency": 0.002}, {"latency": 0.0021}),
        ("score >= -1.5", -1.5, {"score": -1.5}, {"score": -1.6}),
    ],
)
def test_a_condition_has_the_bound_it_says(text, bound, met, missed):
    condition = parse(text)
    assert condition.bound(getattr(DENSE, condition.name)) == pytest.approx(bound)
    values = DENSE.__dict__
    assert condition.excess(Measurement(**{**values, **met}), DENSE) <= 0
    assert condition.excess(Measurement(**{**values, **missed}), DENSE) > 0


def test_rounding_breaks_no_condition():
    condition = parse("score >= dense - 0.1")
    dense = Measurement(score=0.3, n_parameters=1, flops=None, bytes=1, latency=None)
    found = Measurement(score=0.2, n_parameters=1, flops=None, bytes=1, latency=None)
    assert 0.3 - 0.1 != 0.2
    assert condition.excess(found, dense) <= 0


@pytest.mark.parametrize(
    "text",
    ["", "score", "score > 0.9", "speed >= 3", "score >= dense -", "score >= 0.9 points",
     "0.9 <= score", "score >= dense * 0.9 - 1", ("score", 0.9), None, 3],
)  # fmt: skip
def test_anything_else_is_refused_with_examples(text):
    with pytest.raises(ConstraintError, match=r"written as 'score >= 0\.9'") as error:
        search(constraints=[text]).fit(MODEL)
    assert repr(text) in str(error.value)


def test_fewest_parameters_within_a_distance_of_dense():
    found = search(objectives="n_parameters", constraints="score >= dense - 0.01", n_trials=25).fit(
        MODEL
    )
    rows = found.trials_
    feasible = [row for row in rows if row.found.score >= found.dense_.score - 0.01]
    assert 0 < len(feasible) < len(rows)
    assert [row.feasible for row in rows] == [row in feasible for row in rows]
    fewest = min(row.found.n_parameters for row in feasible)
    assert found.best_trial_.found.n_parameters == fewest
    assert closeness(found.best_model_.eval()) >= -0.01
    # Optuna agrees, and so does its dashboard, which shows user attributes.
    assert found.study_.best_value == fewest
    attributes = [trial.user_attrs["feasible"] for trial in found.study_.trials]
    assert attributes == [row.feasible for row in rows]


def test_the_sampler_learns_what_is_allowed():
    def share(**settings):
        found = search(objectives="score", n_trials=40, **settings).fit(MODEL).trials_
        late = found[20:]
        return sum(row.found.n_parameters <= 0.4 * 859 for row in late) / len(late)

    limit = "n_parameters <= 0.4 * dense"
    assert search().fit(MODEL).dense_.n_parameters == 859
    assert share(constraints=limit) > 0.5 > share()


def test_several_objectives_and_several_constraints():
    limits = ("n_parameters <= 0.6 * dense", "bytes >= 0.2 * dense")
    found = search(constraints=limits, n_trials=15).fit(MODEL)
    for row in found.pareto_front_:
        assert row.found.n_parameters <= 0.6 * found.dense_.n_parameters
        assert row.found.bytes >= 0.2 * found.dense_.bytes
    assert any(not row.feasible for row in found.trials_)


def test_where_nothing_meets_them_the_nearest_is_shown():
    limits = ("n_parameters <= 0.05 * dense", "score >= -1000")
    sought: CompressionSearch = search(constraints=limits)
    with pytest.raises(UnsatisfiedConstraintError) as caught:
        sought.fit(MODEL)
    message, smallest = str(caught.value), min(sought.trials_, key=lambda r: r.found.n_parameters)
    assert caught.value.nearest["trial"] == smallest.number
    assert f"n_parameters is {smallest.found.n_parameters}" in message
    assert "'n_parameters <= 0.05 * dense' asks for at most 42.95" in message
    assert "score is" not in message  # that one is met
    assert f"{dict(smallest.params)}" in message
    assert len(sought.study_.trials) == 6  # which can go on, with other constraints in mind
    assert not hasattr(sought, "best_model_")
