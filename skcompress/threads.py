"""Independent pieces of work side by side, on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock, local
from typing import Any, TypeVar

import torch

_TAKEN = Lock()
_WITHIN = local()

Item = TypeVar("Item")
Result = TypeVar("Result")


def results_side_by_side(
    call: Callable[[Item], Result], items: Sequence[Item], size: Callable[[Item], Any]
) -> list[Result]:
    """Give `call(item)` of every item, in their order, computed as `side_by_side` does.

    size : how long an item takes, up to a factor

    Of several errors that of the first item is raised.

    >>> results_side_by_side(lambda n: 2 * n, [1, 3, 2], size=abs)
    [2, 6, 4]
    """
    found: dict[int, Result] = {}
    errors: dict[int, Exception] = {}

    def one(i: int) -> None:
        try:
            found[i] = call(items[i])
        except Exception as error:
            errors[i] = error

    order = sorted(range(len(items)), key=lambda i: size(items[i]), reverse=True)
    side_by_side(one, [(i,) for i in order])
    if errors:
        raise errors[min(errors)]
    return [found[i] for i in range(len(items))]


def side_by_side(call: Callable[..., object], jobs: Sequence[tuple[object, ...]]) -> None:
    """Call `call(*job)` for every job, in as many threads as torch is set to use.

    jobs : the longest first, so that no thread is left with one at the end

    Eigenproblems, and passes over memory, gain little from several threads each, and several
    of them at once gain all there is. Torch's number of threads is divided among the jobs
    meanwhile. That number is the process's: a second caller waits for the first, or would put
    back the wrong one. Within a job, jobs are done one after another.

    An error in one job is raised once the others have ended.
    """
    if getattr(_WITHIN, "job", False):
        _take(call, jobs)
        return
    with _TAKEN:
        n_threads = torch.get_num_threads()
        n_workers = max(1, min(n_threads, len(jobs)))
        if n_workers == 1:
            _take(call, jobs)
            return
        waiting, turn = iter(jobs), Lock()

        def jobs_in_turn() -> Iterable[tuple[object, ...]]:
            while True:
                with turn:
                    job = next(waiting, None)
                if job is None:
                    return
                yield job

        def work() -> None:
            torch.set_num_threads(n_threads // n_workers)
            _take(call, jobs_in_turn())

        try:
            # Threads of this call alone: a process that forks later must not find any.
            with ThreadPoolExecutor(n_workers) as pool:
                done = [pool.submit(work) for _ in range(n_workers)]
        finally:
            torch.set_num_threads(n_threads)
        for one in done:
            one.result()


@torch.no_grad()  # each thread has a mode of its own
def _take(call: Callable[..., object], jobs: Iterable[tuple[object, ...]]) -> None:
    outer, _WITHIN.job = getattr(_WITHIN, "job", False), True
    try:
        for job in jobs:
            call(*job)
    finally:
        _WITHIN.job = outer
