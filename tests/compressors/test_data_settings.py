"""Settings of a fit with data: how much of it is used, what the report says, what is refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from data_cases import error, images, network, same
from models import seeded
from pairwise import pairwise
from sklearn.base import clone
from sklearn.utils._param_validation import InvalidParameterError
from torch import nn

from skcompress import LowRankCompressor, SVDCompressor, TuckerCompressor, count_parameters
from skcompress.errors import CalibratedWeightError, MissingDataError
from skcompress.fitting import importance
from skcompress.network.batches import batches
from skcompress.statistics.divergence import divergence

COMPRESSORS = [SVDCompressor, TuckerCompressor, LowRankCompressor]
NAMED = {compressor.__name__: compressor for compressor in COMPRESSORS}
WAYS = ["independent", "sequential"]


# --- how much of the data ---------------------------------------------------------------


# With less than the moments of one weight's gradients take, only their diagonal is kept.
@pytest.mark.parametrize(
    ("memory", "settings"),
    [(1, {}), (1e5, {}), (1e5, {"metric": "fisher"}), (1e5, {"sensitivity": 0.5})],
)
def test_little_memory_means_more_passes_and_the_same_result(memory, settings):
    model, x = network(), images()
    loader = Counted([x[:40], x[40:]])
    plain = SVDCompressor(0.4, **settings)
    expected = plain.fit_transform(model, loader)
    n_plain, loader.times = loader.times, 0
    compressor = SVDCompressor(0.4, calibration_memory=memory, **settings)
    small = compressor.fit_transform(model, loader)
    assert compressor.plan_ == plain.plan_
    assert same(small, expected)
    assert loader.times > n_plain


def test_of_too_much_for_the_memory_each_weight_has_a_pass_of_its_own():
    loader = Counted([images()])
    # Nothing is compared, which takes passes too.
    settings = {"reconstruction": "independent", "measure": False, "recalibrate_norm": False}
    times = []
    for memory in (2**31, 1):
        loader.times = 0
        compressor = SVDCompressor(3, calibration_memory=memory, **settings)
        compressor.fit(network(), loader)
        times.append(loader.times)
    assert times[1] == times[0] + len(compressor.ranks_) - 1


class Counted(list):
    """Batches that count how often they are read."""

    times = 0

    def __iter__(self):
        self.times += 1
        return super().__iter__()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_positions_are_drawn_by_the_seed(compressor, way):
    model, x = network(), images()

    def fitted(**settings):
        return compressor(rank=0.5, reconstruction=way, **settings).fit_transform(model, x)

    some, every = fitted(max_positions=200, random_state=3), fitted(max_positions=None)
    assert same(some, fitted(max_positions=200, random_state=3))
    assert not same(some, fitted(max_positions=200, random_state=4))
    assert same(fitted(max_positions=200), fitted(max_positions=200))
    assert not same(some, every)
    assert same(every, fitted(max_positions=10**6, random_state=3))
    # What is drawn stands for the rest.
    assert error(model, some, x) < 2 * error(model, every, x) + 0.05


def test_the_global_generator_is_left_alone():
    model, x = network(), images()
    state = torch.get_rng_state()
    SVDCompressor(0.5, metric="fisher", max_positions=100, sensitivity="auto").fit(model, x)
    assert torch.equal(state, torch.get_rng_state())


# --- what the report says ---------------------------------------------------------------


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_the_report_says_what_was_measured(compressor):
    model, x = network(), images()
    fitted = compressor(rank=0.4, sensitivity=0.5, recalibrate_norm=True)
    small = fitted.fit_transform(model, x)
    report = fitted.report_
    again = divergence(model, small, batches("test", x, model))
    assert report.divergence == pytest.approx(again, rel=1e-5)
    assert report.measured.keys() == fitted.ranks_.keys()
    assert all(value > 0 for value in report.measured.values())
    last = list(fitted.ranks_)[-1]
    if last == "9":
        assert report.measured["9"] == pytest.approx(error(model, small, x), rel=1e-4)
    names = [step.name for step in report.steps]
    assert names == [
        "observe", "differentiate", "factorize", "compare", "reconstruct", "recalibrate"
    ]  # fmt: skip
    assert all(step.seconds >= 0 for step in report.steps)
    assert all(step.peak is None or step.peak > 2**20 for step in report.steps)
    text, page = str(report), report._repr_html_()
    for said in ("measured", f"{report.divergence:.4g}", "reconstruct", "parameters"):
        assert said in text
        assert said in page
    for name, value in report.measured.items():
        assert f"{value:.4f}" in next(row for row in text.splitlines() if row.split()[0] == name)
    table = pytest.importorskip("pandas") and report.to_pandas().set_index("layer")
    assert table.loc[last, "measured"] == report.measured[last]
    assert table.loc[last, "error"] == fitted.plan_[last].error


def test_independent_errors_are_measured_as_predicted():
    # Of the first layer, and the only one: all of its error is its own.
    model, x = network(), images()
    settings = {"reconstruction": "independent", "recalibrate_norm": False}
    for layer in ("3", "7", "9"):
        compressor = SVDCompressor({layer: 3}, scheme="output", **settings).fit(model, x)
        predicted = compressor.plan_[layer].error
        assert 0 < compressor.report_.measured[layer] <= 1.1 * predicted + 1e-3


def test_without_data_there_is_nothing_measured():
    compressor = SVDCompressor(0.5).fit(network())
    assert compressor.report_.divergence is None
    assert not compressor.report_.measured
    assert "measured" not in str(compressor.report_)
    assert "divergence" not in compressor.report_._repr_html_()
    compressor.fit(network(), images())
    assert compressor.report_.divergence > 0
    compressor.fit(network())
    assert compressor.report_.divergence is None


# --- statistics that leave something open -----------------------------------------------


def few(x):
    return x[:3]


def one(x):
    return x[:1]


def constant(x):
    x = x.clone()
    x[:, 1] = 0.7
    return x


def dead(x):
    x = x.clone()
    x[:, 2] = 0.0
    return x


def nothing(x):
    return torch.zeros_like(x)


def alike(x):
    return x[:1].expand(8, -1, -1, -1)


@pairwise(
    pick={pick.__name__: pick for pick in (few, one, constant, dead, nothing, alike)},
    way=WAYS,
    compressor=NAMED,
    settings=[{}, {"metric": "fisher"}, {"refit_dense": True, "sensitivity": 0.5}],
)
def test_singular_statistics(pick, way, compressor, settings):
    model, x = network(), pick(images())
    fitted = compressor(rank=0.6, reconstruction=way, **settings)
    small = fitted.fit_transform(model, x)
    assert all(torch.isfinite(value).all() for value in small.state_dict().values())
    assert count_parameters(small) == fitted.n_parameters_out_ <= 0.6 * count_parameters(model)
    assert error(model, small, x) < 0.35
    # What the data says nothing about is still something like the weight.
    # Of one image alone, layers after it are fitted to its drift only.
    assert error(model, small, images(seed=9)) < (10.0 if pick is one else 2.0)


@pytest.mark.parametrize("way", ["independent", "sequential"])
@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_where_inputs_say_nothing_the_weight_decides(compressor, way):
    # Inputs that change by nothing but rounding.
    model = seeded(lambda: nn.Sequential(nn.Linear(30, 40)))
    x = 7 + 5e-7 * seeded(lambda: torch.randn(200, 30)).round()
    fitted = compressor(rank=0.5, reconstruction=way)
    small, plain = fitted.fit_transform(model, x), compressor(rank=0.5).fit(model)
    assert fitted.ranks_ == plain.ranks_
    kept = (m[0].weight.detach() for m in (model, small, plain.transform(model)))
    weight, found, expected = kept
    assert float((found - weight).norm() / (expected - weight).norm()) < 1.001


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e6])
@pytest.mark.parametrize("pick", [few, one, alike, images])
@pytest.mark.parametrize("rank", [{"2": 0.9}, 1, 3])
@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_no_number_is_larger_than_the_data_justifies(compressor, rank, pick, scale):
    model = seeded(lambda: nn.Sequential(
        nn.Conv1d(1, 16, 3), nn.ReLU(), nn.Conv1d(16, 4, 2, stride=2)
    ))  # fmt: skip
    x = images(12)[:, :1].flatten(2)[:, :, :33] * scale
    x = x[:1].expand(8, -1, -1) if pick is alike else x if pick is images else pick(x)
    allocation = "energy" if isinstance(rank, dict) else "global"
    small = compressor(rank=rank, allocation=allocation).fit_transform(model, x)
    largest = max(float(p.detach().abs().max()) for p in small.parameters())
    assert largest < 30 * scale + 30
    assert error(model, small, x) < 1.0


def test_what_inputs_never_do_costs_nothing():
    # Inputs in four directions: rank four gives the outputs, whatever the weight does elsewhere.
    x = seeded(lambda: torch.randn(100, 4) @ torch.randn(4, 60) + 3.0)
    model = seeded(lambda: nn.Sequential(nn.Linear(60, 50)))
    for way in ("independent", "sequential"):
        small = SVDCompressor(4, reconstruction=way).fit_transform(model, x)
        assert error(model, small, x) < 1e-2


# --- other precisions -------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"reconstruction": "independent"}, {"metric": "fisher"}, {"sensitivity": 0.5},
        {"fold_norm": True, "pivot": True}, {"refit_dense": True, "recalibrate_norm": True},
    ],
    ids=str,
)  # fmt: skip
def test_other_precisions(settings):
    exact, x = network(), images()
    reference = SVDCompressor(0.5, **settings).fit_transform(exact, x)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        model = copy.deepcopy(exact).to(dtype)
        compressor = SVDCompressor(0.5, **settings)
        small = compressor.fit_transform(model, x.to(dtype))
        assert {p.dtype for p in small.parameters()} == {dtype}
        assert count_parameters(small) == compressor.n_parameters_out_
        # As close to the dense network as in float32, up to what its numbers can hold.
        rounding = 40 * torch.finfo(dtype).eps
        assert error(exact, small.float(), x) < 1.2 * error(exact, reference, x) + rounding


# --- estimators -------------------------------------------------------------------------

EVERYTHING = {
    "metric": "fisher", "sensitivity": 0.5, "refit_dense": True, "recalibrate_norm": True,
    "fold_norm": True, "calibration_memory": 1e8, "max_positions": 500, "random_state": 1,
    "pivot": True, "cost": "flops",
}  # fmt: skip


@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_clone_and_parameters(compressor):
    first = compressor(rank=0.5, **EVERYTHING)
    assert EVERYTHING.items() <= first.get_params().items()
    model, x = network(), images()
    first.fit(model, x)
    second = clone(first)
    assert not hasattr(second, "plan_")
    assert second.get_params() == first.get_params()
    second.fit(model, x)
    assert second.plan_ == first.plan_
    assert same(first.transform(model), second.transform(model))
    assert "fold_norm=True" in repr(first)


@pairwise(
    compressor=NAMED,
    warm_start=[False, True],
    settings={
        "everything": EVERYTHING,
        "recalibrate_norm": {"recalibrate_norm": True},
        "independent": {"reconstruction": "independent"},
    },
)
def test_a_fitted_compressor_travels(compressor, settings, warm_start):
    model, x = network(), images()
    fitted = compressor(rank=0.5, warm_start=warm_start, **settings).fit(model, x)
    travelled = pickle.loads(pickle.dumps(fitted))
    assert travelled.plan_ == fitted.plan_
    assert str(travelled.report_) == str(fitted.report_)
    assert same(fitted.transform(model), travelled.transform(model))
    again = travelled.fit_transform(model, x)
    assert same(again, fitted.transform(model))
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    with pytest.raises(CalibratedWeightError):
        travelled.transform(other)


def test_an_earlier_fit_leaves_nothing_behind():
    model, x = network(), images()
    compressor = SVDCompressor(0.5, **EVERYTHING).fit(model, x)
    compressor.set_params(**clone(SVDCompressor(0.5)).get_params())
    small = compressor.fit_transform(model)
    assert same(small, SVDCompressor(0.5).fit_transform(model))
    assert isinstance(small[1], nn.BatchNorm2d)


# --- what is refused --------------------------------------------------------------------

BAD = [
    ("metric", "cosine"), ("metric", None), ("reconstruction", "later"),
    ("sensitivity", -0.5), ("sensitivity", "high"), ("sensitivity", None),
    ("sensitivity", float("nan")),
    ("refit_dense", "yes"), ("refit_dense", 2), ("recalibrate_norm", "never"),
    ("recalibrate_norm", None), ("recalibrate_norm", 3), ("fold_norm", "auto"), ("fold_norm", None),
    ("calibration_memory", 0), ("calibration_memory", -1.0), ("calibration_memory", "2 GiB"),
    ("calibration_memory", None), ("max_positions", 0), ("max_positions", 1.5),
    ("max_positions", "all"), ("pivot", "yes"), ("cost", 3), ("random_state", "seed"),
]  # fmt: skip


@pytest.mark.parametrize("compressor", COMPRESSORS)
@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_values_are_named(name, value, compressor):
    bad = compressor(**{name: value})
    for data in (None, images(4)):
        with pytest.raises(
            InvalidParameterError, match=f"'{name}' parameter of {compressor.__name__} must be"
        ):
            bad.fit(network(), data)
    assert not hasattr(bad, "plan_")


NEED_DATA = [
    ("metric", "activations"), ("metric", "fisher"), ("reconstruction", "sequential"),
    ("sensitivity", 0.5), ("sensitivity", "auto"), ("refit_dense", True),
    ("recalibrate_norm", True), ("fold_norm", True), ("cost", "flops"),
]  # fmt: skip


@pytest.mark.parametrize("compressor", COMPRESSORS)
@pytest.mark.parametrize(("name", "value"), NEED_DATA)
def test_what_needs_data_is_named(name, value, compressor):
    fitted = compressor(**{name: value})
    expected = rf"{name}={value!r} of {compressor.__name__} needs data"
    with pytest.raises(MissingDataError, match=expected):
        fitted.fit(network())
    if name not in ("metric", "cost"):  # which does not look at the values of data
        with pytest.raises(MissingDataError, match=expected):
            fitted.set_params(metric="weights").fit(network(), images(4))
    assert not hasattr(fitted, "plan_")


def test_numbers_that_are_no_flags_do_not_ask_for_data():
    assert importance.POWERS[0] == 0.0
    SVDCompressor(0.5, sensitivity=0, recalibrate_norm="auto", refit_dense=False).fit(network())
