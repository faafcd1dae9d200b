"""optuna-dashboard on the study of a search: its pages' data, asked for in this process."""

from __future__ import annotations

import io
import json
import sys

import pytest
from search_cases import INPUTS, MODEL, search

from skcompress import SVDCompressor, TuckerCompressor
from skcompress.spaces import FloatRange
from skcompress.tuning.storage import open_storage

optuna_dashboard = pytest.importorskip(
    "optuna_dashboard", reason="shows studies, and is not installed: pip install optuna-dashboard"
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    url = f"sqlite:///{tmp_path_factory.mktemp('dashboard')}/study.db"
    several = {"svd": SVDCompressor(), "tucker": TuckerCompressor()}
    given = {"storage": url, "study_name": "small or smaller", "sampler": "random"}
    space = {"*rank": FloatRange(0.05, 0.9)}  # of which some cannot be reached
    constraints = "n_parameters <= 0.6 * dense"
    sought = search(estimator=several, space=space, constraints=constraints, n_trials=10, **given)
    return url, sought.fit(MODEL, INPUTS)


@pytest.fixture(scope="module")
def page(found):
    app = optuna_dashboard.wsgi(open_storage(found[0]))

    def get(path: str) -> str:
        status = []
        environment = {
            "REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": "", "SERVER_NAME": "here",
            "SERVER_PORT": "80", "wsgi.input": io.BytesIO(), "wsgi.errors": sys.stderr,
            "wsgi.url_scheme": "http",
        }  # fmt: skip
        answer = app(environment, lambda line, headers, *rest: status.append(line))
        assert status == ["200 OK"]
        return b"".join(answer).decode()

    return get


def test_the_study_is_listed(page):
    (study,) = json.loads(page("/api/studies"))["study_summaries"]
    assert study["study_name"] == "small or smaller"
    assert study["directions"] == ["maximize", "minimize"]


def test_trials_have_readable_names_and_what_was_measured(page, found):
    study = json.loads(page("/api/studies/1"))
    assert study["objective_names"] == ["score", "n_parameters"]
    names = {entry["name"] for entry in study["union_search_space"]}
    assert names == {"estimator", "estimator.svd.rank", "estimator.tucker.rank"}
    begun = {entry["key"]: json.loads(entry["value"]) for entry in study["user_attrs"]}
    assert begun["dense"]["n_parameters"] == found[1].dense_.n_parameters
    assert begun["skcompress"]["constraints"] == ["n_parameters <= 0.6 * dense"]
    states = set()
    for shown, trial in zip(study["trials"], found[1].study_.trials, strict=True):
        states.add(shown["state"])
        params = {entry["name"]: entry["param_external_value"] for entry in shown["params"]}
        assert params == {name: str(value) for name, value in trial.params.items()}
        attributes = {entry["key"]: entry["value"] for entry in shown["user_attrs"]}
        if shown["state"] == "Pruned":
            assert attributes["error"].startswith("BudgetError: rank=")
            continue
        assert shown["values"] == trial.values
        for name in ("score", "n_parameters", "flops", "bytes", "seconds_compressing"):
            assert float(attributes[name]) == pytest.approx(trial.user_attrs[name])
        assert json.loads(attributes["ranks"]) == trial.user_attrs["ranks"]
        assert attributes["feasible"] == str(trial.user_attrs["n_parameters"] <= 0.6 * 859)
    assert states == {"Complete", "Pruned"}


def test_the_table_can_be_taken_home(page):
    header, *rows = page("/csv/1").splitlines()
    assert {"score", "n_parameters", "Param estimator", "UserAttribute flops"} <= set(
        header.split(",")
    )
    assert len(rows) == 10
