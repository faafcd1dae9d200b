"""Jobs in several threads: each once, nothing left behind."""

from __future__ import annotations

from threading import get_ident

import pytest
import torch

from skcompress.threads import results_side_by_side, side_by_side


@pytest.fixture(params=[1, 2, 5])
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("n_jobs", [0, 1, 3, 40])
def test_every_job_is_done_once(n_threads, n_jobs):
    done, threads, shares, graphs = [], set(), set(), set()

    def job(number: int) -> None:
        done.append(number)
        threads.add(get_ident())
        shares.add(torch.get_num_threads())
        graphs.add(torch.is_grad_enabled())

    side_by_side(job, [(i,) for i in range(n_jobs)])
    assert sorted(done) == list(range(n_jobs))
    assert len(threads) <= max(1, min(n_threads, n_jobs))
    assert all(share * min(n_threads, n_jobs) <= n_threads for share in shares)
    assert graphs <= {False}
    assert torch.get_num_threads() == n_threads


def test_an_error_is_raised_and_the_others_are_done(n_threads):
    done = []

    def job(number: int) -> None:
        if number == 1:
            raise ValueError("no")
        done.append(number)

    with pytest.raises(ValueError, match="no"):
        side_by_side(job, [(i,) for i in range(4)])
    assert 0 in done
    assert torch.get_num_threads() == n_threads
    side_by_side(done.append, [(9,)])
    assert 9 in done


def test_jobs_within_a_job_are_done_too(n_threads):
    done = []
    side_by_side(lambda i: side_by_side(done.append, [(i,), (10 + i,)]), [(i,) for i in range(4)])
    assert sorted(done) == [0, 1, 2, 3, 10, 11, 12, 13]


def test_results_come_in_the_order_of_the_items(n_threads):
    started = []

    def call(n: int) -> int:
        started.append(n)
        return 2 * n

    assert results_side_by_side(call, [3, 9, 1], size=abs) == [6, 18, 2]
    assert started[0] == 9
    assert results_side_by_side(call, [], size=abs) == []


def test_of_several_errors_that_of_the_first_item_is_raised(n_threads):
    def call(n: int) -> int:
        raise ValueError(f"item {n}")

    with pytest.raises(ValueError, match="item 3"):
        results_side_by_side(call, [3, 9, 1], size=abs)
