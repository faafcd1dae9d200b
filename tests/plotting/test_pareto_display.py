"""The picture of a search: what is taken from it, and what is drawn where."""

from __future__ import annotations

import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from models import random, seeded
from sklearn.exceptions import NotFittedError
from sklearn.utils._param_validation import InvalidParameterError
from torch import nn

from skcompress import CompressionSearch, ParetoDisplay, SVDCompressor
from skcompress.spaces import FloatRange

INPUTS = random(20, 16, dtype=torch.float32)


@pytest.fixture(autouse=True)
def _no_window():
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def fitted(data=INPUTS, **settings):
    model = seeded(lambda: nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16)))

    def score(small: nn.Module) -> float:
        return -(small(INPUTS) - model(INPUTS)).square().mean().item()

    given = {"scoring": score, "n_trials": 12, "random_state": 0, **settings}
    space = {"rank": FloatRange(0.2, 0.95)}
    return CompressionSearch(SVDCompressor(), space, **given).fit(model, data)


@pytest.fixture(scope="module")
def search():
    return fitted(refit="knee", constraints="score >= dense - 0.025")


def texts(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_points_are_those_of_the_search(search):
    points = ParetoDisplay.from_search(search).points
    assert list(points.values) == ["score", "n_parameters", "flops", "bytes", "latency"]
    for name, column in points.values.items():
        assert column.tolist() == [getattr(row.found, name) for row in search.trials_]
        assert points.dense[name] == getattr(search.dense_, name)
    front = {search.trials_[i].number for i in np.flatnonzero(points.front)}
    assert front == {row.number for row in search.pareto_front_}
    assert search.trials_[points.chosen] == search.best_trial_
    assert points.feasible.tolist() == [row.feasible for row in search.trials_]
    assert points.bounds == [("score", search.dense_.score - 0.025, "score >= dense - 0.025")]


def test_the_front_is_drawn_in_order_over_shares_of_the_dense_model(search):
    display = ParetoDisplay.from_search(search)
    x, y = display.front_.get_data()
    rows = sorted(search.pareto_front_, key=lambda row: row.found.n_parameters)
    dense = search.dense_.n_parameters
    np.testing.assert_allclose(x, [100 * row.found.n_parameters / dense for row in rows])
    np.testing.assert_allclose(y, [row.found.score for row in rows])
    assert display.front_.get_linestyle() == "-"
    assert (display.ax_.get_xlabel(), display.ax_.get_ylabel()) == (
        f"parameters, % of {dense:,}",
        "score",
    )
    assert texts(display.ax_) == [
        *("trials", "constraints not met", "best compromises", "chosen", "uncompressed"),
        "score >= dense - 0.025",
    ]
    drawn = [tuple(c.get_offsets()[0]) for c in display.ax_.collections]
    chosen = search.best_trial_.found
    assert (100 * chosen.n_parameters / dense, chosen.score) in drawn
    assert (100.0, search.dense_.score) in drawn


def test_other_quantities_and_a_place_of_the_users(search):
    display = ParetoDisplay.from_search(search)
    figure, axes = plt.subplots()
    again = display.plot(axes, x="bytes", y="flops", relative=False, line_kw={"color": "red"})
    assert again is display
    assert display.ax_ is axes
    assert display.figure_ is figure
    assert display.front_.get_linestyle() == "None"  # the front of other quantities
    assert display.front_.get_color() == "red"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("bytes", "FLOPs")
    x, _ = display.front_.get_data()
    assert sorted(x) == sorted(row.found.bytes for row in search.pareto_front_)


@pytest.mark.parametrize(
    ("settings", "axes"),
    [
        ({"objectives": ("score", "flops")}, ("flops", "score")),
        ({"objectives": ("bytes", "n_parameters")}, ("n_parameters", "bytes")),
        ({"objectives": "score"}, ("n_parameters", "score")),
        ({"objectives": "flops", "constraints": "score >= -1"}, ("flops", "score")),
        ({"objectives": ("latency", "score"), "n_trials": 2}, ("latency", "score")),
        ({"objectives": "n_parameters", "scoring": None}, ("flops", "n_parameters")),
    ],
)
def test_axes_are_what_the_search_was_about(settings, axes):
    display = ParetoDisplay.from_search(fitted(**settings))
    words = {"n_parameters": "parameters", "flops": "FLOPs", "latency": "latency, ms"}
    found = (display.ax_.get_xlabel(), display.ax_.get_ylabel())
    assert [text.split(", %")[0] for text in found] == [words.get(a, a) for a in axes]


def test_latency_is_in_milliseconds():
    found = fitted(objectives=("latency", "score"), n_trials=2)
    (x, *_), _ = ParetoDisplay.from_search(found).front_.get_data()
    assert x == pytest.approx(1e3 * min(row.found.latency for row in found.pareto_front_))


def test_what_cannot_be_drawn(search, monkeypatch):
    with pytest.raises(NotFittedError):
        ParetoDisplay.from_search(CompressionSearch(SVDCompressor(), scoring=len))
    display = ParetoDisplay.from_search(search)
    without_inputs = ParetoDisplay.from_search(fitted(None, n_trials=2))
    with pytest.raises(ValueError, match=r"'x' parameter of ParetoDisplay.* must be something"):
        without_inputs.plot(x="latency")
    with pytest.raises(InvalidParameterError, match="'y' parameter"):
        display.plot(y="speed")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="skcompress"):
        ParetoDisplay.from_search(search)
