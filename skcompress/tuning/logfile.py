"""A file of logs, one a line, that survives a power cut."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend, JournalFileSymlinkLock

_START = b'{"op_code"'  # of each log


class LogFile(BaseJournalBackend):  # type: ignore[misc]
    """What Optuna's `JournalFileBackend` writes, read also where something tore it.

    A power cut or a full disk leaves a log without its end, or zeros in its place. Readers wait
    for the end of a line and pass over what is no log; who writes next cuts off what has none. Of
    what was written behind a torn log, without a new line, the last log is found all the same.
    """

    def __init__(self, path: str):
        self._path = Path(path)
        self._lock = JournalFileSymlinkLock(path)
        self._path.open("ab").close()
        self._known = (0, 0)  # number of logs, and where the next one begins

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield all logs but the first so many."""
        number, place = self._known if self._known[0] <= log_number_from else (0, 0)
        with self._path.open("rb") as file:
            file.seek(place)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # torn, or not yet written
                place += len(line)
                log = _log_in(line)
                if log is not None:
                    number += 1
                    self._known = (number, place)
                    if number > log_number_from:
                        yield log

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write logs, while nobody else does."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self._alone(), self._path.open("r+b") as file:
            file.seek(_end_of_lines(file))
            file.truncate()
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._lock.acquire()
        try:
            yield
        finally:
            self._lock.release()


def _log_in(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line[max(0, line.rfind(_START)) :])
    except ValueError:
        return None
    return found if isinstance(found, dict) and "op_code" in found else None


def _end_of_lines(file: Any, block: int = 4096) -> int:
    """Give the place behind the last line that has an end."""
    place: int = file.seek(0, os.SEEK_END)
    while place:
        start = max(0, place - block)
        file.seek(start)
        found = file.read(place - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        place = start
    return 0
