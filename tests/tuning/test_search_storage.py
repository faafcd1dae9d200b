"""Studies that outlive a search: resumed, shared, and refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from search_cases import INPUTS, MODEL, closeness, network, search

from skcompress.errors import SpaceChangedError, StorageError, StudyMismatchError
from skcompress.spaces import FloatRange
from skcompress.tuning.storage import open_storage


def sqlite(folder):
    return f"sqlite:///{folder}/study.db"


def journal(folder):
    return JournalStorage(JournalFileBackend(str(folder / "study.log")))


def instance(folder):
    return optuna.storages.RDBStorage(sqlite(folder))


def in_memory(folder):
    return optuna.storages.InMemoryStorage()


@pytest.mark.parametrize("storage", [sqlite, journal, instance, in_memory])
def test_a_search_goes_on_where_it_stopped(tmp_path, storage):
    given = {"storage": storage(tmp_path), "study_name": "mine"}
    first = search(**given, n_trials=3).fit(MODEL)
    before = [trial.params for trial in first.study_.trials]
    second = search(**given, n_trials=7).fit(MODEL)
    trials = second.study_.trials
    assert [trial.params for trial in trials[:3]] == before
    assert len(trials) == 7
    # The seed that drew the first ones does not draw them once more.
    assert len({trial.params["rank"] for trial in trials}) == 7
    assert closeness(second.best_model_.eval()) == second.best_trial_.found.score
    # Enough of them: nothing to do but to build the best.
    third = search(**given, n_trials=5, scoring=_never).fit(MODEL)
    assert len(third.study_.trials) == 7
    assert third.best_trial_ == second.best_trial_


def _never(model):
    raise AssertionError("all is known already")


def test_a_resumed_study_continues_alike(tmp_path):
    def params(folder):
        folder.mkdir()
        given = {"storage": journal(folder), "study_name": "mine"}
        search(**given, n_trials=4).fit(MODEL)
        return [t.params for t in search(**given, n_trials=15).fit(MODEL).study_.trials]

    assert params(tmp_path / "a") == params(tmp_path / "b")


@pytest.mark.parametrize("kind", ["sqlite:///{}/study.db", "journal:///{}/study.log"])
def test_a_killed_trial_does_not_count(tmp_path, kind):
    storage = open_storage(kind.format(tmp_path), heartbeat=1, grace=1)
    given = {"storage": storage, "study_name": "mine"}
    study = search(**given, n_trials=2).fit(MODEL).study_
    study.ask()  # and never told
    study = search(**given, n_trials=4).fit(MODEL).study_
    states = [trial.state for trial in study.trials]
    assert states.count(TrialState.COMPLETE) == 4
    assert len(states) == 5


KILLED = """
import os, signal, sys
from search_cases import MODEL, closeness, search
from skcompress.tuning.storage import open_storage

calls = []


def scoring(network):
    calls.append(1)
    if len(calls) == 3:  # of the second trial; the first call is for the uncompressed network
        os.kill(os.getpid(), signal.SIGKILL)
    return closeness(network)


storage = open_storage(sys.argv[1], heartbeat=0.2, grace=1)
search(storage=storage, study_name="mine", scoring=scoring).fit(MODEL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_what_a_killed_process_was_at_is_done_again_from_a_journal(tmp_path):
    url = f"journal:///{tmp_path}/study.log"
    command = [sys.executable, "-c", KILLED, url]
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests), str(tests / "tuning"), *sys.path])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False)
    assert done.returncode == -9
    storage = open_storage(url, heartbeat=0.2, grace=1)
    found = search(storage=storage, study_name="mine", n_trials=4).fit(MODEL)
    trials = found.study_.trials
    assert [t.state.name for t in trials][:2] == ["COMPLETE", "FAIL"]
    assert [t.state for t in trials].count(TrialState.COMPLETE) >= 4
    (again,) = (t for t in trials if t.system_attrs.get("failed_trial") == 1)
    assert again.params == trials[1].params
    assert again.state == TrialState.COMPLETE


def test_a_trial_that_others_took_for_killed_is_dropped(tmp_path):
    storage = open_storage(sqlite(tmp_path), heartbeat=1, grace=1)
    calls = []

    def hanging(model):
        calls.append(1)
        if len(calls) == 3:
            study = optuna.load_study(study_name="mine", storage=storage)
            (running,) = (t for t in study.trials if t.state == TrialState.RUNNING)
            storage.set_trial_state_values(running._trial_id, TrialState.FAIL)
        return closeness(model)

    study = search(storage=storage, study_name="mine", n_trials=5, scoring=hanging).fit(MODEL)
    states = [trial.state for trial in study.study_.trials]
    assert states.count(TrialState.COMPLETE) == 5
    assert states.count(TrialState.FAIL) == 1


def test_failed_trials_count(tmp_path):
    def fails_thrice(model, calls=[]):  # noqa: B006
        calls.append(1)
        if 2 <= len(calls) <= 4:
            raise OSError("no disk")
        return closeness(model)

    with pytest.warns(match="3 trials failed, the first with OSError: no disk"):
        study = search(scoring=fails_thrice, n_trials=5).fit(MODEL).study_
    assert len(study.trials) == 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"objectives": ("score", "flops")}, r"objectives .*'n_parameters'.* has .*'flops'"),
        ({"objectives": ("n_parameters", "score")}, "objectives"),
        ({"objectives": "score"}, "objectives"),
        ({"constraints": "score >= -1"}, r"constraints \[\], this search has \['score >= -1'\]"),
    ],
)
def test_other_objectives_and_constraints_are_refused(tmp_path, change, words):
    given = {"storage": sqlite(tmp_path), "study_name": "mine", "n_trials": 2}
    search(**given).fit(MODEL, INPUTS)
    with pytest.raises(StudyMismatchError, match=words) as error:
        search(**{**given, "n_trials": 3, **change}).fit(MODEL, INPUTS)
    assert "'mine'" in str(error.value)
    assert len(optuna.load_study(study_name="mine", storage=given["storage"]).trials) == 2


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"rank": FloatRange(0.2, 0.5)}, "'rank' was float 0.2 to 0.95, is float 0.2 to 0.5"),
        ({"rank": FloatRange(0.2, 0.95), "scheme": ...}, "'scheme' is new"),
        ("scheme", "'rank' .* is missing"),
    ],
)
def test_another_space_is_refused_before_any_trial(tmp_path, space, words):
    given = {"storage": sqlite(tmp_path), "study_name": "mine", "n_trials": 2}
    search(**given).fit(MODEL)
    with pytest.raises(SpaceChangedError, match=words):
        search(**{**given, "n_trials": 3}, space=space).fit(MODEL)
    assert len(optuna.load_study(study_name="mine", storage=given["storage"]).trials) == 2


def test_another_network_is_refused(tmp_path):
    given = {"storage": sqlite(tmp_path), "study_name": "mine", "n_trials": 1}
    search(**given).fit(MODEL)
    with pytest.raises(StudyMismatchError, match="begun with model"):
        search(**given).fit(network(1))


def test_a_study_of_somebody_else_is_refused(tmp_path):
    study = optuna.create_study(
        storage=sqlite(tmp_path), study_name="mine", directions=["maximize", "minimize"]
    )
    study.optimize(lambda trial: (1.0, 2.0), n_trials=1)
    with pytest.raises(StudyMismatchError, match="not of a CompressionSearch"):
        search(storage=sqlite(tmp_path), study_name="mine").fit(MODEL)


@pytest.mark.parametrize(
    "storage", ["sqlite:////nowhere/at/all.db", "nonsense", "postgresql://localhost:1/none", 3]
)
def test_storage_out_of_reach(storage):
    with pytest.raises(StorageError, match="cannot be used") as error:
        search(storage=storage).fit(MODEL)
    assert repr(storage) in str(error.value)
