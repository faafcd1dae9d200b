from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from data_cases import error, images, network, same
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from skcompress import LowRankCompressor, SVDCompressor, TuckerCompressor
from skcompress.decompositions.svd import SVD
from skcompress.fitting import calibration
from skcompress.fitting.memo import Memo, share
from skcompress.protocols import Compressor


class Counter:
    """Counts the calls of a function."""

    def __init__(self, function):
        self.function, self.n_calls = function, 0

    def __call__(self, *args, **kwargs):
        self.n_calls += 1
        return self.function(*args, **kwargs)

    def __get__(self, instance, owner=None):
        return partial(self, instance)


@pytest.fixture
def expensive(monkeypatch):
    """Counters of what a later trial is not to do again."""
    found = {
        "stream": Counter(calibration.stream), "gradients": Counter(calibration.output_moments),
        "factorize": Counter(SVD.factorize),
    }  # fmt: skip
    monkeypatch.setattr(calibration, "stream", found["stream"])
    monkeypatch.setattr(calibration, "output_moments", found["gradients"])
    monkeypatch.setattr(SVD, "factorize", found["factorize"])
    return found


def counts(expensive):
    found = {name: counter.n_calls for name, counter in expensive.items() if counter.n_calls}
    for counter in expensive.values():
        counter.n_calls = 0
    return found


ALONE = {"reconstruction": "independent", "measure": False, "recalibrate_norm": False}


# --- what a trial costs -----------------------------------------------------------------------


def test_only_what_is_missing_is_computed(expensive):
    model, x, shared = network(), images(), Memo()

    def trial(**settings):
        share(SVDCompressor(**{**ALONE, **settings}), shared).fit_transform(model, x)
        return counts(expensive)

    # A grouped layer has two weights, and layers without kernel only one way.
    assert trial(rank=0.5, scheme="output") == {"stream": 1, "factorize": 5}
    assert trial(rank=0.7, scheme="output") == {}
    assert trial(rank=3, scheme="output", allocation="uniform") == {}
    assert trial(rank=0.7) == {"factorize": 3}
    assert trial(rank=0.7, metric="fisher") == {"gradients": 1, "factorize": 8}
    assert trial(rank=0.7, sensitivity=0.5) == {}
    assert trial(rank=0.6, max_positions=20) == {"stream": 1, "factorize": 8}
    assert trial(rank=0.6, max_positions=20, random_state=1) == {"stream": 1, "factorize": 8}


def test_the_network_itself_is_not_run_again():
    class Counting(nn.Sequential):
        n_runs: list[int] = []  # noqa: RUF012 - copies of the network count too

        def forward(self, x):
            self.n_runs.append(len(x))
            return super().forward(x)

    model, x, shared = Counting(*network()), images(100), Memo()
    share(SVDCompressor(0.5, **ALONE), shared).fit(model, x)
    assert sum(Counting.n_runs) == 100 + 64  # all of it, and the first batch for what follows
    Counting.n_runs.clear()
    share(SVDCompressor(0.7, **ALONE), shared).fit(model, x)
    assert not Counting.n_runs
    share(SVDCompressor(0.7, recalibrate_norm=False), shared).fit(model, x)
    Counting.n_runs.clear()
    compared = share(
        SVDCompressor(0.6, reconstruction="independent", recalibrate_norm=False), shared
    )
    compared.fit(model, x)
    # Both networks side by side.
    assert sum(Counting.n_runs) == 2 * 100


def test_steps_of_a_pipeline_share(expensive):
    model, shared = network(), Memo()
    pipeline = make_pipeline(SVDCompressor(0.8, layers=nn.Conv2d), TuckerCompressor(0.7))
    first = share(clone(pipeline), shared).fit_transform(model)
    assert counts(expensive)["factorize"]
    second = share(clone(pipeline), shared).fit_transform(model)
    assert not counts(expensive)
    assert same(first, second)
    assert same(first, pipeline.fit_transform(model))


def test_measure_says_nothing_of_outputs_and_changes_nothing():
    model, x = network(), images()
    for settings in ({}, {"reconstruction": "independent"}, {"recalibrate_norm": True}):
        measured, plain = (
            SVDCompressor(0.5, **settings),
            SVDCompressor(0.5, measure=False, **settings),
        )
        assert same(measured.fit_transform(model, x), plain.fit_transform(model, x))
        assert measured.report_.measured
        assert not plain.report_.measured
    assert SVDCompressor(0.5, **ALONE).fit(model, x).report_.divergence is None


# --- what changes is noticed ------------------------------------------------------------------


def change_weight(model, x):
    with torch.no_grad():
        model[7].weight.data[3, 5] += 1e-3


def change_buffer(model, x):
    model[1].running_mean.data.add_(0.1)


def change_attribute(model, x):
    model[5].output_size = (2, 2)
    model[1].eps = 0.1


def change_module(model, x):
    model[2] = nn.Tanh()


def change_hook(model, x):
    model[2].register_forward_hook(lambda module, args, output: output * 2)


def change_data(model, x):
    x.data[17, 2, 3, 3] += 1e-3


@pytest.mark.parametrize(
    "change",
    [change_weight, change_buffer, change_attribute, change_module, change_hook, change_data],
)
@pytest.mark.parametrize("warm", [False, True])
def test_changes_in_place_are_noticed(change, warm):
    model, x, shared = network(), images(), Memo()
    settings = {"rank": 0.5, "reconstruction": "independent"}
    compressor = SVDCompressor(warm_start=warm, **settings)
    if not warm:
        share(compressor, shared)
    before = compressor.fit_transform(model, x)
    change(model, x)
    found = compressor.fit_transform(model, x)
    expected = SVDCompressor(**settings).fit(model, x)
    assert same(found, expected.transform(model))
    assert compressor.report_.measured == expected.report_.measured
    assert not same(found, before)


def test_equal_copies_are_known(expensive):
    model, x, shared = network(), images(), Memo()
    share(SVDCompressor(0.5, **ALONE), shared).fit(model, x)
    counts(expensive)
    for data in (x.clone(), x):
        share(SVDCompressor(0.5, **ALONE), shared).fit(network(), data)
        assert not counts(expensive)
    # Other batches, and an array, are other data.
    for data in ([x[:40], x[40:]], [(x[:40],), (x[40:],)], x.numpy()):
        share(SVDCompressor(0.5, **ALONE), shared).fit(model, data)
        assert counts(expensive)["stream"]
        share(SVDCompressor(0.6, **ALONE), shared).fit(model, data)
        assert not counts(expensive)


def test_a_loader_is_known_as_long_as_it_lives(expensive):
    model, x, shared = network(), images(), Memo()

    def loader():
        return DataLoader(TensorDataset(x), batch_size=32, shuffle=True)

    one = loader()
    for data, known in ((one, False), (one, True), (loader(), False), (loader(), False)):
        share(SVDCompressor(0.5, **ALONE), shared).fit(model, data)
        assert ("stream" in counts(expensive)) is not known
        gc.collect()


def test_decompositions_with_settings_that_cannot_be_told_apart_are_not_shared(expensive):
    class Tagged(SVD):
        def __init__(self, tag=None):
            super().__init__()
            self.tag = tag

    model, shared = network(), Memo()
    for tag, known in ((object(), False), (object(), False), (1, False), (1, True), (2, False)):
        share(LowRankCompressor(Tagged(tag), 0.5), shared).fit(model)
        assert bool(counts(expensive)) is not known


# --- how much is kept --------------------------------------------------------------------------


def test_the_least_recently_used_goes_first_and_spare_results_before():
    size = Memo()
    size.put("x", torch.zeros(1000))
    shared = Memo(memory=3.5 * size.n_bytes)
    for key in "abc":
        assert torch.equal(shared.get(key, lambda: torch.zeros(1000)), torch.zeros(1000))
    shared.find("a")
    shared.put("d", torch.zeros(1000))
    assert shared.find("b") is None
    assert None not in (shared.find("a"), shared.find("c"))
    shared.put("spare", torch.zeros(1), spare=True)
    shared.find("spare")
    shared.put("e", torch.zeros(1000))
    assert shared.find("spare") is None
    assert len(shared) == 3
    shared.put("huge", torch.zeros(100_000))
    assert len(shared) == 3
    shared.clear()
    assert (len(shared), shared.n_bytes) == (0, 0)


def test_sizes_are_those_of_what_is_kept():
    shared = Memo()
    shared.put("view", {"one": [torch.zeros(5000)[:2]]})
    assert 20_000 <= shared.n_bytes < 22_000
    whole = torch.zeros(4000)
    shared.put("views", (whole[:5], whole[5:]))
    assert 36_000 <= shared.n_bytes < 39_000
    shared.put("view", None)
    assert 16_000 <= shared.n_bytes < 18_000


def test_moments_make_room_for_factorisations():
    model, x = network(), images()
    big = Memo()
    share(SVDCompressor(0.5, **ALONE), big).fit(model, x)
    small = Memo(memory=0.6 * big.n_bytes)  # a tenth more than the factorisations are
    for _ in range(2):
        share(SVDCompressor(0.5, **ALONE), small).fit(model, x)
    computed = small.n_computed
    share(SVDCompressor(0.6, **ALONE), small).fit(model, x)
    assert small.n_computed == computed


def test_a_fitted_compressor_keeps_what_its_ranks_need():
    model, shared = network(), Memo()
    fitted = share(SVDCompressor(0.3), shared).fit(model)
    small = fitted.transform(model)
    held = [r.factors for r in fitted.fitted_.replacements.values()]
    assert sum(t.numel() for f in held for t in f.stored) <= fitted.n_parameters_out_
    shared.clear()
    assert same(fitted.transform(model), small)


# --- threads ---------------------------------------------------------------------------------


def test_an_error_reaches_everybody_who_waits_and_is_not_kept():
    shared, entered = Memo(), threading.Semaphore(0)

    def fail():
        entered.release()
        raise ValueError("broken")

    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(shared.get, "key", fail) for _ in range(3)]
        for future in futures:
            with pytest.raises(ValueError, match="broken"):
                future.result()
    assert shared.get("key", lambda: 1) == 1


def test_claims_of_many_threads_come_to_an_end():
    shared = Memo()
    with ThreadPoolExecutor(4) as pool:

        def claim(n):
            with shared.alone(n % 5), shared.alone(n % 5):
                return shared.get(n % 7, lambda: n % 7) + n - n % 7

        assert list(pool.map(claim, range(400), timeout=30)) == list(range(400))


def test_trials_at_once_leave_the_global_random_state_alone():
    model, x, shared = network(), images(), Memo()
    loader = DataLoader(TensorDataset(x), batch_size=16, shuffle=True)
    state = torch.random.get_rng_state()
    expected = SVDCompressor(0.5).fit_transform(model, loader)

    def trial(rank):
        return share(SVDCompressor(rank), shared).fit_transform(model, loader)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(trial, [0.5, 0.6, 0.5, 0.7]))
    assert torch.equal(state, torch.random.get_rng_state())
    assert same(found[0], expected)
    assert same(found[2], expected)


# --- compressors of others --------------------------------------------------------------------


def test_compressors_that_know_nothing_of_it_can_be_told_to_share():
    class Unchanged(Compressor):
        def fit(self, model, data=None):
            return self

        def transform(self, model):
            return model

    pipeline = share(make_pipeline(Unchanged(), SVDCompressor(0.5)), Memo())
    assert error(network(), pipeline.fit_transform(network()), images()) < 1.0
