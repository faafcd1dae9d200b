"""What fits share changes nothing about their results: over everything registered."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from torch import Tensor, nn

from skcompress import registry
from skcompress.compressors.base import FactorizingCompressor
from skcompress.fitting.memo import Memo, share
from skcompress.testing.cases import small_models

# What is shared are factorisations, and what is needed for them: of those that divide ranks.
COMPRESSORS = [
    name
    for name in registry.names("compressors")
    if issubclass(registry.resolve("compressors", name), FactorizingCompressor)
]
DECOMPOSITIONS = registry.names("decompositions")


def trials(compressor: Any, *, data: bool) -> Iterator[Any]:
    """Settings one after another, as a search tries them; where the compressor has them."""
    every: list[dict[str, Any]] = [
        {"rank": 0.7}, {"rank": 0.6}, {"rank": 0.7, "allocation": "uniform"},
        {"rank": 3}, {"rank": 0.7, "scheme": "output"}, {"rank": 0.8, "pivot": True},
        {"rank": 0.7, "exclude": (nn.Conv2d,)},
    ]  # fmt: skip
    if data:
        # The sequential reconstruction takes longest, and shares least.
        for settings in every[1:]:
            settings["reconstruction"] = "independent"
        alone = {"rank": 0.6, "reconstruction": "independent"}
        every += [
            {**alone, "sensitivity": 0.5}, {**alone, "metric": "fisher"},
            {**alone, "fold_norm": True}, {**alone, "cost": "flops"},
            {**alone, "sensitivity": "auto", "max_positions": 5},
            {"rank": 0.7, "metric": "weights"}, {"rank": 0.7, "metric": "fisher"},
        ]  # fmt: skip
    known = compressor.get_params()
    for settings in every:
        if settings.keys() <= known.keys():
            yield clone(compressor).set_params(**settings)


def outcome(compressor: Any, model: nn.Module, data: Any) -> tuple[Any, list[Tensor]] | str:
    """Plan and parameters; or the error, where there is one."""
    try:
        small = compressor.fit_transform(model, data)
    except ValueError as error:
        return str(error)
    report = compressor.report_
    found = getattr(report, "divergence", None), getattr(report, "measured", None)
    return (compressor.plan_, compressor.spectra_.keys(), found), [*small.state_dict().values()]


def check_same(one: Any, other: Any) -> None:
    if isinstance(one, str):
        assert one == other
        return
    assert one[0] == other[0]
    assert all(map(torch.equal, one[1], other[1]))
    assert len(one[1]) == len(other[1])


@pytest.mark.parametrize("case", [name for name, _, _ in small_models()])
@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_shared_fit_is_a_fit_alone_bit_for_bit(name, data, case):
    compressor: Any = registry.make("compressors", name)
    if "random_state" in compressor.get_params():
        compressor.set_params(random_state=0)
    _, model, (x,) = next(known for known in small_models() if known[0] == case)
    given = x if data else None
    limits = {memory: Memo(memory) for memory in (2**30, 2**17)}
    for trial in trials(compressor, data=data):
        expected = outcome(clone(trial), model, given)
        for memory, shared in limits.items():
            check_same(outcome(share(clone(trial), shared), model, given), expected)
            assert shared.n_bytes <= memory
    assert all(shared.n_reused for shared in limits.values())


@pytest.mark.parametrize("name", DECOMPOSITIONS)
def test_every_decomposition_is_shared(name):
    low_rank: Any = registry.make("compressors", "low_rank")
    low_rank.set_params(decomposition=name, random_state=0, layers=("0", "8"))
    shared = Memo()
    _, model, (x,) = list(small_models())[1]
    for data in (None, x):
        low_rank.set_params(reconstruction="auto" if data is None else "independent")
        alone = [clone(low_rank).set_params(rank=rank) for rank in (0.8, 0.7)]
        expected = [outcome(trial, model, data) for trial in alone]
        for trial, known in zip(alone, expected, strict=True):
            check_same(outcome(share(clone(trial), shared), model, data), known)
        computed = shared.n_computed
        for trial, known in zip(alone, expected, strict=True):
            check_same(outcome(share(clone(trial), shared), model, data), known)
        assert shared.n_computed == computed


@pytest.mark.parametrize("name", COMPRESSORS)
def test_threads_share(name):
    shared, (_, model, (x,)) = Memo(), list(small_models())[1]
    compressor: Any = registry.make("compressors", name)
    ranks = [0.6 + n / 50 for n in range(8)]
    expected = [outcome(clone(compressor).set_params(rank=r), model, x) for r in ranks]

    def run(rank: float) -> Any:
        return outcome(share(clone(compressor).set_params(rank=rank), shared), model, x)

    with ThreadPoolExecutor(4) as pool:
        for found, known in zip(pool.map(run, ranks), expected, strict=True):
            check_same(found, known)
    alone = Memo()
    outcome(share(clone(compressor).set_params(rank=0.6), alone), model, x)
    assert shared.n_computed == alone.n_computed


@pytest.mark.parametrize("name", COMPRESSORS)
def test_copies_do_not_take_it_along(name):
    shared = Memo()
    compressor: Any = registry.make("compressors", name)
    pipeline = share(make_pipeline(compressor), shared)
    assert compressor._shared is shared
    travelled = pickle.loads(pickle.dumps(pipeline))[0]
    for copied in (clone(compressor), copy.deepcopy(compressor), travelled):
        assert copied._shared is None
    share(pipeline, None)
    assert compressor._shared is None
