"""TensorLy's settings belong to the user."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorly as tl
import torch
from skcompress_tensorly import CP, TensorTrain
from skcompress_tensorly.backend import TAKES_ALGEBRA, Contraction, torch_backend
from tensorly.tenalg.core_tenalg import unfolding_dot_khatri_rao

DECOMPOSITIONS = [CP(n_ranks=3, n_iter_max=4), TensorTrain(n_ranks=4)]


def in_new_thread(function):
    """Result of `function` in a thread that has chosen no backend of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def backends() -> tuple[str, str]:
    return tl.get_backend(), tl.tenalg.get_backend()


def use(decomposition) -> None:
    weight = torch.randn(6, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    factorization = decomposition.factorize(weight)
    factorization.factors(weight, factorization.curve.rank_at(1))


@pytest.mark.parametrize("decomposition", DECOMPOSITIONS, ids=["cp", "tt"])
def test_backend_stays_numpy_here_and_in_other_threads(decomposition):
    assert backends() == in_new_thread(backends) == ("numpy", "core")
    use(decomposition)
    assert backends() == in_new_thread(backends) == ("numpy", "core")
    assert isinstance(tl.tensor([1.0]), np.ndarray)


def test_backend_of_one_thread_does_not_become_that_of_all():
    def uses_torch() -> tuple[str, str]:
        tl.set_backend("pytorch", local_threadsafe=True)
        use(DECOMPOSITIONS[0])
        return backends()

    assert in_new_thread(uses_torch) == ("pytorch", "core")
    assert in_new_thread(backends) == ("numpy", "core")


def test_backend_is_given_back_after_an_error():
    def fail():
        with torch_backend():
            assert backends() == ("pytorch", "contraction" if TAKES_ALGEBRA else "core")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert backends() == ("numpy", "core")


def test_other_threads_keep_their_backend_meanwhile():
    entered, seen = threading.Event(), threading.Event()

    def hold():
        with torch_backend():
            entered.set()
            seen.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert entered.wait(10)
    try:
        assert backends() == ("numpy", "core")
        assert in_new_thread(backends) == ("numpy", "core")
    finally:
        seen.set()
        thread.join()


@pytest.mark.parametrize("decomposition", DECOMPOSITIONS, ids=["cp", "tt"])
def test_threads_get_what_one_thread_gets(decomposition):
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(6, 5, 3, 3, generator=generator) for _ in range(8)]

    def first_factor(weight):
        factorization = decomposition.factorize(weight)
        return factorization.factors(weight, factorization.curve.rank_at(1)).tensors[0]

    alone = [first_factor(w) for w in weights]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(first_factor, weights))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("weighted", [False, True])
def test_contraction_is_tensorlys_product(weighted, generator):
    tensor = torch.randn(4, 6, 3, 2, generator=generator)
    factors = [torch.randn(size, 5, generator=generator) for size in tensor.shape]
    weights = torch.rand(5, generator=generator) if weighted else None
    algebra = Contraction()
    for mode in (0, 1, 2, 3, 1):
        ours = algebra.unfolding_dot_khatri_rao(tensor, (weights, factors), mode)
        with torch_backend():
            theirs = unfolding_dot_khatri_rao(tensor, (weights, factors), mode)
        assert torch.allclose(ours, theirs, atol=1e-5)
        # A new factor must not meet what was computed with the old one.
        factors[mode] = torch.randn(*factors[mode].shape, generator=generator)
