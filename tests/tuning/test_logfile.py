"""Journals that a power cut has torn, at whatever place."""

from __future__ import annotations

import json

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from search_cases import MODEL, closeness, search

from skcompress.tuning.logfile import LogFile
from skcompress.tuning.storage import open_storage

LOGS = [{"op_code": n, "worker_id": "w", "text": "a" * n} for n in range(5)]


@pytest.fixture(autouse=True)
def _quiet():
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


def objective(trial: optuna.Trial) -> float:
    trial.set_user_attr("note", 'of {"op_code"')
    return trial.suggest_float("x", 0, 1)


def worked(path, n_trials: int) -> optuna.Study:
    """A study that has had so many further trials, as by a process of its own."""
    study = optuna.create_study(
        storage=open_storage(f"journal:///{path}"), study_name="a", load_if_exists=True,
        sampler=optuna.samplers.RandomSampler(seed=0),
    )  # fmt: skip
    study.optimize(objective, n_trials=n_trials)
    return study


def finished(trials):
    return {t.number: t.params for t in trials if t.state == TrialState.COMPLETE}


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    """Content of a journal of three trials, and the numbers of trials that end before a place."""
    path = tmp_path_factory.mktemp("whole") / "study.log"
    ends = []
    for _ in range(3):
        before = finished(worked(path, 1).trials)
        ends.append(path.stat().st_size)
    return path.read_bytes(), before, ends


TORN = {
    "cut": lambda whole, place: whole[:place],
    "zeros": lambda whole, place: whole[:place] + bytes(5000),
    "written on": lambda whole, place: whole[:place] + whole[: whole.index(b"\n") + 1],
}


@pytest.mark.parametrize("kind", TORN)
def test_a_study_goes_on_wherever_its_journal_was_torn(tmp_path, journal, kind):
    whole, before, ends = journal
    for place in [*range(0, len(whole), 151), *range(len(whole) - 4, len(whole))]:
        path = tmp_path / f"{place}.log"
        path.write_bytes(TORN[kind](whole, place))
        worked(path, 1)
        trials = worked(path, 1).trials
        kept = {number: before[number] for number, end in enumerate(ends) if end <= place}
        assert finished(trials).items() >= kept.items(), place
        assert len(finished(trials)) >= len(kept) + 2, place
        if kind != "written on":  # Optuna's own reader can go on too
            theirs = JournalStorage(JournalFileBackend(str(path))).get_all_trials(0)
            assert finished(theirs) == finished(trials), place


def test_a_search_does_the_trial_again_whose_end_was_cut_off(tmp_path):
    def fitted(n_trials, scoring=closeness):
        storage = open_storage(f"journal:///{tmp_path}/study.log", heartbeat=0.1, grace=0.3)
        given = {"storage": storage, "study_name": "mine", "scoring": scoring}
        return search(**given, n_trials=n_trials).fit(MODEL).study_.trials

    fitted(2)
    path = tmp_path / "study.log"
    path.write_bytes(path.read_bytes()[:-7])
    trials = fitted(3)
    assert trials[1].state == TrialState.FAIL
    (again,) = (t for t in trials if t.system_attrs.get("failed_trial") == 1)
    assert again.params == trials[1].params
    assert [t.state for t in fitted(5)].count(TrialState.COMPLETE) == 5


def test_readers_pass_over_what_is_no_log(tmp_path):
    path = tmp_path / "logs"
    lines = [json.dumps(log, separators=(",", ":")) for log in LOGS]
    torn = ["\0\0\0", "3", '{"op_code": 1', lines[0][:-3] + lines[1], "\x80", ""]
    path.write_text("\n".join([lines[0], *torn, *lines[2:], '{"op_code":'])[:-1])
    file = LogFile(str(path))
    assert list(file.read_logs(0)) == LOGS
    assert list(file.read_logs(3)) == LOGS[3:]
    assert list(file.read_logs(5)) == []
    file.append_logs(LOGS[:2])
    assert list(file.read_logs(5)) == LOGS[:2]  # of those that this one has read before
    assert list(LogFile(str(path)).read_logs(6)) == LOGS[1:2]
    assert path.read_bytes().endswith(f"{lines[4]}\n{lines[0]}\n{lines[1]}\n".encode())


@pytest.mark.parametrize("content", [b"", b'{"op_code":0,"worker_id"', b"\0" * 10_000])
def test_an_empty_journal_and_half_a_first_line(tmp_path, content):
    path = tmp_path / "study.log"
    path.write_bytes(content)
    assert len(worked(path, 2).trials) == 2
    assert len(worked(path, 1).trials) == 3
    assert path.read_bytes().startswith(b'{"op_code":0')
