"""Independent pieces of linear algebra side by side, on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import torch

_TAKEN = Lock()


def side_by_side(call: Callable[..., object], jobs: Sequence[tuple[object, ...]]) -> None:
    """Call `call(*job)` for every job, in as many threads as torch is set to use.

    jobs : the longest first, so that no thread is left with one at the end

    Eigenproblems gain little from several threads each, and several of them at once gain
    all there is. Torch's number of threads is divided among the jobs meanwhile. That number
    is the process's: a second caller waits for the first, or would put back the wrong one.

    An error in one job is raised once the others have ended.
    """
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
    for job in jobs:
        call(*job)
