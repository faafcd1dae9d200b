"""The random states of the process, found afterwards as they were."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def _remembered(device: torch.device) -> Callable[[], None]:
    """Give what brings the global random states back to what they are now."""
    of_python, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    of_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore() -> None:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)
        if of_device is not None:
            torch.cuda.set_rng_state(of_device, device)

    return restore


@contextmanager
def restored_randomness(device: torch.device) -> Iterator[None]:
    """Restore the global random states afterwards: of torch, numpy and Python.

    For a caller around whom no other thread does the same, whatever threads it starts itself.
    """
    restore = _remembered(device)
    try:
        yield
    finally:
        restore()


# The states are those of the whole process: of two threads at a time, one would put back what the
# other has drawn.
_alone = threading.RLock()


class Turn:
    """A thread's turn with the global random states, which others wait for."""

    def __init__(self, device: torch.device):
        self._device = device
        self._restore = _remembered(device)

    def end(self) -> None:
        """Put back the states as they were found."""
        self._restore()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let other threads have theirs meanwhile, then go on with the numbers that come next.

        Not where the turn is inside another one of the same thread.
        """
        resume = _remembered(self._device)
        self._restore()
        _alone.release()
        try:
            yield
        finally:
            _alone.acquire()
            self._restore = _remembered(self._device)
            resume()


@contextmanager
def same_randomness(device: torch.device) -> Iterator[Turn]:
    """Find the global random states afterwards as they were, whatever other threads draw.

    Even a DataLoader that does not shuffle draws from torch's, and what shuffles or
    augments gives the same batches each time that this starts from the same state. One thread
    at a time: others wait, so that none is to be waited for inside, unless in `Turn.paused`.
    """
    with _alone:
        turn = Turn(device)
        try:
            yield turn
        finally:
            turn.end()


def guarded(data: Iterable[Any], device: torch.device) -> Iterator[Any]:
    """Iterate over a user's data without a trace in the random states of the process.

    What the iterator draws, as a shuffling DataLoader does, begins with the states as they are
    now: the data comes in the same order whenever it is read from the same states.
    """
    own = _remembered(device)
    with same_randomness(device):
        iterator = iter(data)
        own = _remembered(device)
    while True:
        with same_randomness(device):
            own()
            try:
                item = next(iterator)
            except StopIteration:
                return
            finally:
                own = _remembered(device)
        yield item
