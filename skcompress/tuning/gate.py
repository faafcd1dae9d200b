"""Letting one thread measure time while the others of the search stand still."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """Many threads work at a time, or one is alone. Neither inside the other.

    Who wants to be alone goes first: threads that are about to begin wait for it, and those
    at work finish what they are at.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._n_working = 0
        self._n_waiting = 0
        self._taken = False

    @contextmanager
    def working(self) -> Iterator[None]:
        """Work beside others."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._taken or self._n_waiting))
            self._n_working += 1
        try:
            yield
        finally:
            with self._changed:
                self._n_working -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Work while nobody else does."""
        with self._changed:
            self._n_waiting += 1
            try:
                self._changed.wait_for(lambda: not (self._taken or self._n_working))
            finally:
                self._n_waiting -= 1
            self._taken = True
        try:
            yield
        finally:
            with self._changed:
                self._taken = False
                self._changed.notify_all()
