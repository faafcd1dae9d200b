"""Optuna's own pictures and tables of a study that a search made."""

from __future__ import annotations

import warnings

import matplotlib.pyplot as plt
import optuna
import pytest
from search_cases import INPUTS, MODEL, search

from skcompress import SVDCompressor, TuckerCompressor


@pytest.fixture(autouse=True)
def _no_window():
    plt.switch_backend("Agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is experimental, and of low values
        yield
    plt.close("all")


@pytest.fixture(scope="module")
def study():
    both = {"svd": SVDCompressor(), "tucker": TuckerCompressor()}
    given = {"estimator": both, "space": "*rank", "n_trials": 10, "sampler": "random"}
    return search(**given, constraints="n_parameters <= 0.8 * dense").fit(MODEL, INPUTS).study_


def test_the_front(study):
    pictures = optuna.visualization.matplotlib
    axes = pictures.plot_pareto_front(study)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("score", "n_parameters")


@pytest.mark.parametrize("name", ["plot_slice", "plot_parallel_coordinate", "plot_contour"])
def test_parameters(study, name):
    plot = getattr(optuna.visualization.matplotlib, name)
    params = None
    if name == "plot_contour":
        params = ["estimator.svd.rank", "estimator"]
    plot(study, params=params, target=lambda trial: trial.values[0], target_name="score")
    written = "".join(t.get_text() for ax in plt.gcf().axes for t in ax.findobj(plt.Text))
    assert "estimator" in written


def test_history_and_importances(study):
    pictures = optuna.visualization.matplotlib
    for plot in (pictures.plot_optimization_history, pictures.plot_edf):
        plot(study, target=lambda trial: trial.values[0], target_name="score")
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    axes = pictures.plot_param_importances(
        study, evaluator=evaluator, target=lambda trial: -trial.values[0], target_name="-score"
    )
    assert "estimator" in [label.get_text() for label in axes.get_yticklabels()]


def test_the_table_has_readable_columns(study):
    frame = study.trials_dataframe()
    assert {
        *("values_score", "values_n_parameters", "params_estimator", "params_estimator.svd.rank"),
        *("user_attrs_score", "user_attrs_n_parameters", "user_attrs_bytes", "user_attrs_flops"),
        *("user_attrs_seconds", "user_attrs_seconds_compressing", "user_attrs_feasible"),
    } <= set(frame.columns)
    assert study.metric_names == ["score", "n_parameters"]
