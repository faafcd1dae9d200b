"""Several processes at one study, some of which are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from postgres_server import NoServerError, server

from skcompress.errors import StorageError
from skcompress.tuning.storage import open_storage

pytest.importorskip("psycopg", reason="no psycopg: pip install 'skcompress[postgres]'")

HERE = Path(__file__).parent
# A worker carries out trials until there are so many finished ones in the study.
WORKER = """
import os, sys, time
sys.path[:0] = [{here!r}, {tests!r}]
import optuna
from search_cases import MODEL, search, closeness
from skcompress.tuning.storage import open_storage
optuna.logging.set_verbosity(optuna.logging.ERROR)

def slow(model):
    with open(os.path.join({folder!r}, str(os.getpid())), "a") as file:
        file.write("+")
    time.sleep(0.2)
    return closeness(model)

storage = open_storage({url!r}, heartbeat=1, grace=2)
search(storage=storage, study_name="many", n_trials={n_trials}, random_state=os.getpid(),
       scoring=slow).fit(MODEL)
"""


@pytest.fixture(scope="module")
def database():
    try:
        with server() as url:
            yield url
    except NoServerError as reason:
        pytest.skip(str(reason))


def begin(url, folder, n_trials):
    code = WORKER.format(
        here=str(HERE), tests=str(HERE.parent), folder=str(folder), url=url, n_trials=n_trials
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE)


def wait_for_trials(folder, process, n):
    path = folder / str(process.pid)
    for _ in range(6000):
        if path.exists() and path.stat().st_size >= n:
            return
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.01)
    raise AssertionError("no trial within a minute")


def test_killed_workers_lose_no_trial_and_double_none(database, tmp_path):
    n_trials = 24
    workers = [begin(database, tmp_path, n_trials) for _ in range(3)]
    try:
        for worker in workers:
            wait_for_trials(tmp_path, worker, 4)
        victim = workers.pop()
        # It has just begun to score, which takes it 0.2 seconds.
        wait_for_trials(tmp_path, victim, (tmp_path / str(victim.pid)).stat().st_size + 1)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        for worker in workers:
            assert worker.wait(300) == 0, worker.stderr.read().decode()
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            worker.stderr.close()
    study = optuna.load_study(study_name="many", storage=open_storage(database))
    states = Counter(trial.state for trial in study.trials)
    assert [trial.number for trial in study.trials] == list(range(len(study.trials)))
    # A worker ends the trial that it is at, and what was killed is done again even when enough are.
    assert n_trials <= states[TrialState.COMPLETE] < n_trials + len(workers) + 1
    assert not states.keys() & {TrialState.RUNNING, TrialState.WAITING}
    killed = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    assert len(killed) == 1
    retried = [t for t in study.trials if t.system_attrs.get("failed_trial") == killed[0].number]
    assert [(t.state, t.params) for t in retried] == [(TrialState.COMPLETE, killed[0].params)]
    # Nothing else was tried twice.
    done = [tuple(t.params.values()) for t in study.trials if t.state == TrialState.COMPLETE]
    assert len(set(done)) == len(done)


def test_a_wrong_password_is_not_shown(database):
    url = database.replace("se%2Fcr%40t", "hunter2")
    with pytest.raises(StorageError, match=r"searcher:\*\*\*@127.* authentication failed") as error:
        open_storage(url)
    assert "hunter2" not in str(error.value)
