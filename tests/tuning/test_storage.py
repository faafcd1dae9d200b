from __future__ import annotations

import multiprocessing
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import DBAPIError

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


def test_killed_trials_of_a_journal_are_tried_again(tmp_path):
    url = f"journal:///{tmp_path}/study.log"

    def opened():
        """As by another process."""
        storage = open_storage(url, heartbeat=0.05, grace=0.4)
        return optuna.create_study(storage=storage, study_name="a", load_if_exists=True)

    study, others = opened(), opened()
    killed = study.ask()
    x = killed.suggest_float("x", 0, 1)
    study._storage.record_heartbeat(killed._trial_id)
    never_seen = study.ask()

    def slow(trial):
        """Takes longer than the grace period, and gives signs meanwhile."""
        time.sleep(0.6)
        return trial.suggest_float("x", 0, 1)

    with ThreadPoolExecutor(1) as pool:
        alive = pool.submit(others.optimize, slow, n_trials=1)
        end = time.monotonic() + 20
        while time.monotonic() < end:
            study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
            if study.trials[killed.number].state == TrialState.FAIL and alive.done():
                break
            time.sleep(0.02)
        alive.result()
    trials = study.trials
    assert [t.number for t in trials if t.state == TrialState.FAIL] == [killed.number]
    (retry,) = (t for t in trials if t.system_attrs.get("failed_trial") == killed.number)
    assert (retry.params, retry.state) == ({"x": x}, TrialState.COMPLETE)
    running = [t.number for t in trials if t.state == TrialState.RUNNING]
    assert running == [never_seen.number]  # of whom nobody can tell


def test_a_trial_that_is_over_gives_no_sign(tmp_path):
    storage = open_storage(f"journal:///{tmp_path}/study.log")
    study = optuna.create_study(storage=storage)
    with pytest.warns(UserWarning, match="Heartbeat"):
        trial = study.ask()
    study.tell(trial, 1.0)
    storage.record_heartbeat(trial._trial_id)
    assert study.trials[0].value == 1.0


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


def _begin(url, barrier):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    barrier.wait(120)
    study = optuna.create_study(storage=open_storage(url), study_name="a", load_if_exists=True)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize("url", ["sqlite:///{}/study.db", "journal:///{}/study.log"])
def test_workers_begin_one_study_together(tmp_path, url):
    context = multiprocessing.get_context("fork")  # at once at the barrier, without imports
    url, barrier = url.format(tmp_path), context.Barrier(3)
    workers = [context.Process(target=_begin, args=(url, barrier)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    storage = open_storage(url)
    assert [study.study_name for study in storage.get_all_studies()] == ["a"]
    assert len(optuna.load_study(study_name="a", storage=storage).trials) == 6


@pytest.mark.parametrize(
    "said",
    ["table studies already exists", "UNIQUE constraint failed: alembic_version.version_num"],
)
def test_tables_that_another_worker_makes_meanwhile_are_waited_for(tmp_path, monkeypatch, said):
    calls = []

    def overtaken(*arguments, **settings):
        calls.append(1)
        if len(calls) < 3:
            raise DBAPIError("CREATE", {}, Exception(said))
        return RDBStorage(*arguments, **settings)

    monkeypatch.setattr(storage_module, "RDBStorage", overtaken)
    assert isinstance(open_storage(f"sqlite:///{tmp_path}/study.db"), RDBStorage)
    assert len(calls) == 3
