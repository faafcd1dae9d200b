from __future__ import annotations

import sys

import optuna
import pytest
from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage
from optuna.trial import TrialState

from skcompress.errors import StorageError
from skcompress.tuning import storage as storage_module
from skcompress.tuning.storage import open_storage, shown


def test_every_kind_of_storage(tmp_path):
    assert isinstance(open_storage(None), InMemoryStorage)
    given = InMemoryStorage()
    assert open_storage(given) is given
    assert isinstance(open_storage(f"journal:///{tmp_path}/study.log"), JournalStorage)
    assert (tmp_path / "study.log").exists()
    database = open_storage(f"sqlite:///{tmp_path}/study.db", heartbeat=7)
    assert isinstance(database, RDBStorage)
    assert (database.heartbeat_interval, database.grace_period) == (7, 28)
    for url in ("sqlite://", "sqlite:///:memory:"):
        study = optuna.create_study(storage=open_storage(url))
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)


def test_a_trial_without_signs_of_life_is_tried_again(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(storage=open_storage(url, heartbeat=1, grace=1), study_name="a")
    killed = study.ask()
    x = killed.suggest_float("x", 0, 1)
    study._storage._backend.record_heartbeat(killed._trial_id)  # type: ignore[attr-defined]
    for _ in range(100):
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
        states = [trial.state for trial in study.trials]
        if TrialState.FAIL in states:
            break
    (retry,) = (t for t in study.trials if t.system_attrs.get("failed_trial") == killed.number)
    assert (retry.params, retry.state) == ({"x": x}, TrialState.COMPLETE)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("study.db", "begins with sqlite:///, postgresql:// or journal:///"),
        (3, "neither a URL nor an Optuna storage"),
        ("nonsense://host/name", "no driver for nonsense|load plugin"),
        ("sqlite:////nowhere/at/all.db", "unable to open database file"),
        ("journal:////nowhere/at/all.log", "FileNotFoundError"),
        ("postgresql://me:hunter2@127.0.0.1:1/none", r"//me:\*\*\*@.*[Cc]onnection refused"),
        ("postgresql://127.0.0.1:1/none?password=hunter2", r"\?password=\*\*\*"),
        ("postgresql://me:hun:t@er2@127.0.0.1:1/none", r"//me:\*\*\*@127"),
    ],
)
def test_what_cannot_be_opened(url, words):
    if "postgresql" in str(url):
        pytest.importorskip("psycopg")
    with pytest.raises(StorageError, match=words) as error:
        open_storage(url)
    assert "hun" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_driver_is_named(monkeypatch):
    monkeypatch.setattr(storage_module, "find_spec", lambda name: None)
    for name in ("psycopg", "psycopg2"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(StorageError, match=r"no driver for postgresql.*skcompress\[postgres\]"):
        open_storage("postgresql://me:hunter2@127.0.0.1/none")


def test_shown_without_passwords():
    assert shown("sqlite:///a.db") == "'sqlite:///a.db'"
    assert shown("postgresql://me@host/name") == "'postgresql://me@host/name'"
    assert shown(InMemoryStorage()) == "InMemoryStorage"
