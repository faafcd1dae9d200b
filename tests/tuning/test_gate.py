"""Threads that work beside each other, and one that is alone."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from skcompress.tuning.gate import Gate


def test_nobody_works_beside_one_who_is_alone():
    gate, lock = Gate(), threading.Lock()
    working, seen, most = 0, [], 0

    def task(number: int) -> None:
        nonlocal working, most
        for _ in range(20):
            with gate.working():
                with lock:
                    working += 1
                    most = max(most, working)
                time.sleep(0.0005)
                with lock:
                    working -= 1
            with gate.alone():
                before = working
                time.sleep(0.0005)
                seen.append((before, working))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(task, range(4)))
    assert set(seen) == {(0, 0)}
    assert len(seen) == 80
    assert most > 1  # and otherwise they do work beside each other


@pytest.mark.parametrize("place", ["working", "alone"])
def test_an_error_inside_leaves_the_gate_open(place):
    gate = Gate()
    with pytest.raises(RuntimeError, match="mine"), getattr(gate, place)():
        raise RuntimeError("mine")
    with gate.alone():
        pass
    with gate.working():
        pass


def test_who_wants_to_be_alone_is_not_kept_waiting_by_newcomers():
    gate, done = Gate(), threading.Event()

    def newcomer() -> None:
        while not done.is_set():
            with gate.working():
                time.sleep(0.002)

    threads = [threading.Thread(target=newcomer, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        with gate.alone():
            pass
    done.set()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
