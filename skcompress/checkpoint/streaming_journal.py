"""What is known of an unfinished run, so that it can go on where it was stopped.

Beside the destination lies a folder of the same name with a dot before it. One process at a time
works in it. The destination itself is touched only at the end, by renaming.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from ..errors import (
    CheckpointBusyError,
    CheckpointExistsError,
    CheckpointWriteError,
    UnfinishedCheckpointError,
)
from ..protocols import Curve, Spectrum

# How the budget is divided. Under another one only the curves are as before.
BUDGET = "budget"
CURVES = "curves of "
# Of the journal. Another one is not read.
VERSION = 1


class Workplace:
    """The folder in which a result is made before it takes its place.

    destination : where the result goes
    alone : name of the one file that is the result; None for all of the folder
    """

    def __init__(self, destination: Path, alone: str | None = None):
        self.destination = destination
        self.folder = destination.with_name(f".{destination.name}.unfinished")
        self.result = self.folder / "result"
        self._product = self.result if alone is None else self.result / alone
        self._old = self.folder / "old"
        self._journal = self.folder / "journal"

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Work here as the only process; errors of the file system say which place failed."""
        try:
            self.folder.mkdir(exist_ok=True)
            lock = FileLock(self.folder / "lock", timeout=0)
            with lock:
                yield
        except Timeout as cause:
            raise CheckpointBusyError(self.destination) from cause
        except OSError as cause:
            if isinstance(cause, CheckpointWriteError | FileExistsError):
                raise
            raise CheckpointWriteError(self.destination, cause) from cause

    def begin(self, about: Mapping[str, Any], *, overwrite: bool, restart: bool) -> Journal:
        """Go on with what is there, or begin.

        about : what has to be the same for going on
        """
        if restart:
            self._give_up()
        journal = Journal(self._journal, {"version": VERSION, **about})
        if journal.differences:
            raise UnfinishedCheckpointError(self.destination, journal.differences)
        moved = journal.complete and not self._product.exists()
        if self.destination.exists() and not (overwrite or moved):
            if not journal.begun:
                self.discard()
            raise CheckpointExistsError(self.destination)
        return journal

    def finish(self, journal: Journal) -> None:
        """Put the result in its place."""
        journal.add("complete", True)
        if self._product.exists():
            # A file takes the place of another in one step, a folder only that of nothing.
            if self._product.is_dir() and self.destination.exists():
                os.rename(self.destination, self._old)
            os.replace(self._product, self.destination)
            _sync_folder(self.destination.parent)
        self.discard()

    def discard(self) -> None:
        """Remove the folder; whoever waits for its lock finds that it is gone."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _give_up(self) -> None:
        if self._old.exists() and not self.destination.exists():
            os.rename(self._old, self.destination)
        for path in (self.result, self._old):
            shutil.rmtree(path, ignore_errors=True)
        self._journal.unlink(missing_ok=True)


class Journal:
    """One line of JSON for each thing that is done, in the order in which it was.

    about : the first line; `differences` names what of it is not the same as before
    """

    def __init__(self, path: Path, about: Mapping[str, Any]):
        self._path = path
        self._found: dict[str, Any] = {}
        self.differences: list[str] = []
        length = 0
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
            try:
                key, value = json.loads(line)
            except ValueError:
                break  # torn when the process ended
            if not line.endswith(b"\n"):
                break
            length += len(line)
            self._note(key, value)
        self.begun = "about" in self._found
        if self.begun:
            before = self._found["about"]
            self.differences = [name for name in about if before.get(name) != about[name]]
            os.truncate(path, length)
        else:
            path.unlink(missing_ok=True)
            self.add("about", dict(about))

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do but to put the result in its place."""
        return "complete" in self._found

    def add(self, key: str, value: Any) -> None:
        """Note something; it is on the disk afterwards."""
        with self._path.open("ab") as file:
            file.write(json.dumps([key, value]).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._note(key, value)

    def _note(self, key: str, value: Any) -> None:
        if key == BUDGET and self._found.get(BUDGET) != value:
            lasting = ("about", CURVES)
            self._found = {k: v for k, v in self._found.items() if k.startswith(lasting)}
        self._found[key] = value

    def get(self, key: str) -> Any:
        """Give what was noted, or None."""
        return self._found.get(key)


def curve_to_json(curve: Curve) -> dict[str, Any]:
    """Write a curve with every bit of its numbers."""
    return {
        "scheme": curve.scheme,
        "ranks": _packed(curve.ranks),
        "costs": _packed(curve.costs),
        "errors": _packed(curve.errors),
        "total": float(curve.total).hex(),
        "full_rank": curve.full_rank,
        "spectra": [[_packed(s.values), list(s.shape)] for s in curve.spectra],
    }


def curve_from_json(data: Mapping[str, Any]) -> Curve:
    """Read what `curve_to_json` wrote."""
    full_rank = data["full_rank"]
    return Curve(
        scheme=data["scheme"],
        ranks=_unpacked(data["ranks"]),
        costs=_unpacked(data["costs"]),
        errors=_unpacked(data["errors"]),
        total=float.fromhex(data["total"]),
        full_rank=tuple(full_rank) if isinstance(full_rank, list) else full_rank,
        spectra=tuple(Spectrum(_unpacked(v), tuple(shape)) for v, shape in data["spectra"]),
    )


def _packed(array: np.ndarray) -> list[Any]:
    text = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return [array.dtype.str, list(array.shape), text]


def _unpacked(packed: list[Any]) -> np.ndarray:
    dtype, shape, text = packed
    return np.frombuffer(base64.b64decode(text), np.dtype(dtype)).reshape(shape)


def _sync_folder(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):  # Windows has no way to do so
        return
    handle = os.open(folder, os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
