"""A PostgreSQL server of our own for a while, from the programs that Debian's package brings."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PASSWORD = "se/cr@t"


class NoServerError(Exception):
    """Why there can be none here."""


def programs() -> Path:
    """Folder of `initdb` and `postgres`: on the path, or where Debian puts the newest."""
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"),
        key=lambda path: [int(n) for n in path.parts[4].split(".")],
    )
    if not found:
        raise NoServerError("no initdb: install the package postgresql")
    return found[-1].parent


def _unprivileged() -> str | None:
    """Name of the user to run as, where it is not to be the present one: never as root."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise NoServerError("PostgreSQL does not run as root, and there is no user postgres or nobody")


@contextmanager
def server() -> Iterator[str]:
    """Run a server on a free port of this machine; gives the URL of its database."""
    found, user = programs(), _unprivileged()
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short: a socket's path may not be long
    try:
        (folder / "password").write_text(PASSWORD)
        if user is not None:
            for path in (folder, folder / "password"):
                shutil.chown(path, user)
        _run(
            [found / "initdb", "-D", folder / "data", "-U", "searcher", "--auth=scram-sha-256",
             f"--pwfile={folder / 'password'}", "--no-sync", "--encoding=UTF8", "--locale=C"],
            user, folder,
        )  # fmt: skip
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        log = (folder / "log").open("wb")
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": folder,
            "fsync": "off",
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        process = subprocess.Popen(
            [found / "postgres", "-D", folder / "data",
             *(word for name, value in settings.items() for word in ("-c", f"{name}={value}"))],
            cwd=folder, user=user, stdout=log, stderr=log,
        )  # fmt: skip
        try:
            _wait(process, port, folder / "log")
            yield f"postgresql://searcher:se%2Fcr%40t@127.0.0.1:{port}/postgres"
        finally:
            process.send_signal(signal.SIGINT)  # which does not wait for clients
            process.wait(30)
            log.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(command: list[object], user: str | None, folder: Path) -> None:
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, user=user, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise NoServerError(f"initdb fails: {done.stderr.strip()[-300:]}")


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(300):
        if process.poll() is not None:
            raise NoServerError(f"postgres ends at once: {log.read_text()[-300:]}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            if "ready to accept connections" in log.read_text():
                return
            time.sleep(0.1)
    raise NoServerError("postgres does not answer within 30 seconds")
