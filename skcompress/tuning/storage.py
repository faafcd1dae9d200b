"""Where studies are kept: in memory, in a file, or in a database that many machines reach."""

from __future__ import annotations

import re
import time
import warnings
from importlib.util import find_spec
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from ..errors import StorageError
from .journal import Journal
from .logfile import LogFile

# What installs the driver of a database that is reached by its plain name.
_DRIVERS = {
    "postgresql": "pip install 'skcompress[postgres]', or another driver such as psycopg2",
    "mysql": "pip install pymysql, and begin the URL with mysql+pymysql://",
}
_JOURNAL = "journal:///"
_ATTEMPTS = 6
# What a database says of tables, and SQLite of their one row, that another worker makes just now.
_BEGUN_BY_OTHERS = ("already exists", "UNIQUE constraint failed")
# As `RDBStorage` calls what it does with killed trials; renamed in Optuna 4.9.
_CALLBACK = (
    "heartbeat_stale_trial_callback"
    if hasattr(optuna.storages, "RetryHeartbeatStaleTrialCallback")
    else "failed_trial_callback"
)


def open_storage(
    storage: str | BaseStorage | None,
    *,
    heartbeat: int = 30,
    grace: int | None = None,
    max_retry: int = 3,
) -> BaseStorage:
    """Open what a study is kept in, so that trials of killed workers are not lost.

    storage : None for this process's memory; a URL: "sqlite:///study.db" for processes of one
        machine, "postgresql://user:password@host/database" for many machines, anything else
        that SQLAlchemy has a driver for; "journal:///folder/study.log" for a file that machines
        share; or an Optuna storage, which is taken as it is
    heartbeat : seconds between the signs of life of a running trial
    grace : seconds without one after which a trial counts as killed; None for four heartbeats.
        Whichever worker begins a trial next then puts its parameters into the queue again.
    max_retry : how often

    A database has to be reachable now. The row of a trial that is killed before its first sign of
    life, when it has no parameters yet, stays "running". So do killed trials of Optuna's own
    `JournalStorage`, which knows no signs of life; see `journal.Journal`.

    A URL that is none, a missing driver and a server that does not answer are a
    `skcompress.errors.StorageError`, which never shows a password.

    >>> import optuna
    >>> study = optuna.create_study(storage=open_storage(None))
    >>> study.optimize(lambda trial: trial.suggest_float("rank", 0.0, 1.0), n_trials=2)
    >>> len(study.trials)
    2
    """
    if storage is None:
        return InMemoryStorage()
    if isinstance(storage, BaseStorage):
        return storage
    if not isinstance(storage, str):
        raise StorageError(f"{storage!r}", "it is neither a URL nor an Optuna storage")
    try:
        if storage.startswith(_JOURNAL):
            file = LogFile(storage.removeprefix(_JOURNAL))
            return Journal(file, heartbeat, grace or 4 * heartbeat, _retry(max_retry))
        return _database(make_url(storage), heartbeat, grace, max_retry)
    except Exception as error:
        raise _explained(storage, error) from error


def grace_of(storage: BaseStorage) -> float | None:
    """Seconds after which a killed trial is known to be one; None where that is never known."""
    interval = getattr(storage, "heartbeat_interval", None)
    if interval is None:
        return None
    # Seconds are counted by the server, and the last sign of life may be as old as one interval.
    return float((getattr(storage, "grace_period", None) or 2 * interval) + interval + 1)


def _database(url: URL, heartbeat: int, grace: int | None, max_retry: int) -> BaseStorage:
    if url.drivername == "postgresql" and find_spec("psycopg") is not None:
        url = url.set(drivername="postgresql+psycopg")  # SQLAlchemy 2.0 looks for psycopg2 only
    kind = url.get_backend_name()
    settings: dict[str, Any] = {}
    if kind == "sqlite":
        # Several writers take turns; the default gives up after 5 seconds.
        settings["connect_args"] = {"timeout": 60}
    else:
        # Connections may be cut while a long trial leaves them idle; each thread that
        # runs a trial needs one, and so does its heartbeat.
        settings.update(pool_pre_ping=True, max_overflow=50)
    if kind == "postgresql" and "connect_timeout" not in url.query:
        settings["connect_args"] = {"connect_timeout": 10}
    if kind == "sqlite" and url.database in (None, "", ":memory:"):
        return RDBStorage(str(url))  # of this thread alone, so that no other could give signs
    for attempt in range(_ATTEMPTS):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                return RDBStorage(
                    url.render_as_string(hide_password=False),
                    engine_kwargs=dict(settings),
                    heartbeat_interval=heartbeat,
                    grace_period=grace or 4 * heartbeat,
                    **{_CALLBACK: _retry(max_retry)},
                )
        except DBAPIError as error:
            # Of workers that begin together with an empty database, each makes its tables.
            begun = any(words in str(error) for words in _BEGUN_BY_OTHERS)
            if attempt == _ATTEMPTS - 1 or not begun:
                raise
            time.sleep(0.1 * 2**attempt)
    raise AssertionError("never reached")


def _retry(max_retry: int) -> Any:
    """Give what puts killed trials into the queue again."""
    storages = optuna.storages
    if _CALLBACK == "failed_trial_callback":
        return storages.RetryFailedTrialCallback(max_retry=max_retry)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return storages.RetryHeartbeatStaleTrialCallback(max_retry=max_retry)


def _explained(url: str, error: Exception) -> StorageError:
    """Say what is wrong with a storage in one line, without its passwords."""
    if isinstance(error, ImportError):
        kind = url.partition(":")[0]
        hint = _DRIVERS.get(kind, "install the package that the URL begins with")
        return StorageError(shown(url), f"no driver for {kind} is installed: {hint}")
    if isinstance(error, ArgumentError | ValueError) and "://" not in url:
        return StorageError(
            shown(url), "a URL begins with sqlite:///, postgresql:// or journal:///"
        )
    # Optuna wraps what the driver says, which goes on for many lines.
    cause = error.__cause__ or error
    said = str(getattr(cause, "orig", None) or cause).strip().splitlines()
    words = said[0] if said else ""
    for secret in _secrets(url):
        words = words.replace(secret, "***")
    return StorageError(shown(url), f"{type(cause).__name__}: {words}")


def shown(storage: str | BaseStorage) -> str:
    """Write a storage for others to read: without passwords."""
    if not isinstance(storage, str):
        return type(storage).__name__
    for secret in _secrets(storage):
        storage = storage.replace(secret, "***")
    return repr(storage)


def _secrets(url: str) -> list[str]:
    """Find the passwords of a URL, before the host or among its parameters."""
    found = re.findall(r"://[^:/?#]*:(.*)@", url) + re.findall(r"(?i)[?&]\w*pass\w*=([^&]*)", url)
    return [secret for secret in found if secret]
