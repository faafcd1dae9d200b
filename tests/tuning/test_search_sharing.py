"""Trials that have factorisations and statistics in common."""

from __future__ import annotations

import pytest
from search_cases import INPUTS, MODEL, search
from sklearn.pipeline import Pipeline

from skcompress.compressors import base
from skcompress.decompositions.spatial_svd import SpatialSVD
from skcompress.decompositions.svd import SVD
from skcompress.spaces import FloatRange


@pytest.fixture
def calls(monkeypatch):
    """Shapes of the weights that are factorised, one entry each time."""
    seen: list[tuple[int, ...]] = []
    for kind in (SVD, SpatialSVD):
        done = kind.factorize

        def noted(self, weight, *rest, done=done):
            seen.append(tuple(weight.shape))
            return done(self, weight, *rest)

        monkeypatch.setattr(kind, "factorize", noted)
    return seen


@pytest.mark.parametrize("data", [None, INPUTS])
@pytest.mark.parametrize("n_jobs", [1, 3])
def test_each_weight_is_factorised_once_whatever_the_ranks(calls, data, n_jobs):
    given = {"estimator": base_compressor(), "n_trials": 8, "n_jobs": n_jobs}
    space = {"rank": FloatRange(0.5, 0.95), "allocation": ...}  # ranks that can be reached
    found = search(**given, space=space).fit(MODEL, data)
    assert len(found.trials_) == 8
    assert sorted(calls) == [(3, 16), (16, 24), (24, 16)]


def base_compressor() -> base.FactorizingCompressor:
    from skcompress import SVDCompressor

    return SVDCompressor(scheme="output", reconstruction="independent", recalibrate_norm=False)


def test_without_memory_nothing_is_shared_and_all_is_the_same(calls):
    given = {"estimator": base_compressor().set_params(reconstruction="auto"), "n_trials": 4}
    shared = search(**given).fit(MODEL)
    n_shared = len(calls)
    alone = search(**given, cache_memory=0).fit(MODEL)
    assert len(calls) - n_shared == 5 * n_shared == 15  # of each trial, and of the refit
    assert [t.values for t in alone.study_.trials] == [t.values for t in shared.study_.trials]


def test_nothing_is_kept_after_the_fit():
    assert search(n_trials=1).fit(MODEL).best_compressor_._shared is None


def test_trials_measure_nothing_for_reports_but_the_result_does(monkeypatch):
    built = []
    fit = base.FactorizingCompressor._fit

    def noted(self, *arguments):
        built.append(self.measure)
        return fit(self, *arguments)

    monkeypatch.setattr(base.FactorizingCompressor, "_fit", noted)
    found = search(estimator=Pipeline([("only", base_compressor())]), n_trials=2, space="*rank")
    found.fit(MODEL, INPUTS)
    assert built == [False, False, True]
    assert found.best_compressor_["only"].report_.measured
