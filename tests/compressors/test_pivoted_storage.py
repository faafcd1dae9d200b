"""`pivot=True`: the same ranks in fewer numbers, or larger ranks in as many."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from models import distance, seeded
from sklearn.base import clone
from torch import nn

from skcompress import LowRankCompressor, SVDCompressor, TuckerCompressor, count_parameters
from skcompress.errors import CalibratedWeightError
from skcompress.layers.pivot import PivotedFactor
from skcompress.plan import Plan
from skcompress.testing import check_compressor


def make_model(seed=0):
    return seeded(lambda: nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.Conv2d(24, 32, 3, groups=2), nn.ReLU(), nn.Conv2d(32, 32, 3, stride=2), nn.Flatten(),
        nn.Linear(32 * 4, 40), nn.ReLU(), nn.Linear(40, 10),
    ).eval(), seed)  # fmt: skip


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def images(generator):
    return torch.randn(64, 3, 8, 8, generator=generator)


COMPRESSORS = {
    "auto": SVDCompressor(),
    "output": SVDCompressor(scheme="output"),
    "input": SVDCompressor(scheme="input"),
    "spatial": SVDCompressor(scheme="spatial"),
    "tucker": TuckerCompressor(),
    "several": LowRankCompressor(("svd", "tucker", "spatial_svd")),
}
every_compressor = pytest.mark.parametrize("compressor", COMPRESSORS.values(), ids=COMPRESSORS)


def both(compressor, **settings):
    return [clone(compressor).set_params(pivot=pivot, **settings) for pivot in (False, True)]


@every_compressor
def test_keeps_the_laws(compressor):
    check_compressor(clone(compressor).set_params(pivot=True))


@every_compressor
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_int_rank_gives_the_same_network_in_fewer_numbers(compressor, rank, model, images):
    plain, pivoted = both(compressor, rank=rank)
    expected = plain.fit_transform(model)
    small = pivoted.fit_transform(model)
    assert pivoted.ranks_ == plain.ranks_
    assert [p.error for p in pivoted.plan_] == [p.error for p in plain.plan_]
    assert pivoted.n_parameters_out_ == count_parameters(small) < count_parameters(expected)
    assert distance(small(images), expected(images)) < 1e-5


def test_savings_are_the_squares_of_the_ranks(model):
    plain, pivoted = both(SVDCompressor(scheme="output", rank=3))
    plain.fit(model)
    pivoted.fit(model)
    saved = [a.after - b.after for a, b in zip(plain.plan_, pivoted.plan_, strict=True)]
    expected = [p.groups * 9 if p.rank else 0 for p in pivoted.plan_]
    assert saved == expected
    assert sum(saved) == plain.n_parameters_out_ - pivoted.n_parameters_out_ > 0


@every_compressor
@pytest.mark.parametrize("allocation", ["global", "uniform", "energy"])
def test_the_same_budget_buys_no_less(compressor, allocation, model):
    plain, pivoted = both(compressor, rank=0.5, allocation=allocation)
    plain.fit(model)
    small = pivoted.fit_transform(model)
    assert pivoted.n_parameters_out_ == count_parameters(small)
    if allocation == "energy":
        assert pivoted.n_parameters_out_ <= plain.n_parameters_out_
    else:
        kept = [sum(p.error**2 for p in c.plan_) for c in (plain, pivoted)]
        assert kept[1] <= kept[0] * (1 + 1e-9)


def test_the_same_budget_buys_larger_ranks(model):
    plain, pivoted = both(SVDCompressor(scheme="output", allocation="uniform"), rank=0.5)
    plain.fit(model)
    pivoted.fit(model)
    assert pivoted.ranks_.keys() == plain.ranks_.keys()
    assert all(pivoted.ranks_[name] > rank for name, rank in plain.ranks_.items() if rank > 4)


def test_ranks_beyond_what_two_factors_could_save(model):
    fitted = SVDCompressor(rank=0.95, scheme="output", allocation="uniform", pivot=True).fit(model)
    planned = fitted.plan_["5"]
    rows, columns = 32, 288
    assert planned.rank > rows * columns / (rows + columns)
    assert planned.after == planned.rank * (rows + columns - planned.rank) <= 0.95 * rows * columns


def test_predicted_error_is_the_measured_one(model):
    fitted = SVDCompressor(rank=0.6, pivot=True)
    small = fitted.fit_transform(model)
    for planned in fitted.plan_:
        if planned.rank is not None:
            dense = model.get_submodule(planned.name).weight
            measured = distance(small.get_submodule(planned.name).weight, dense)
            assert measured == pytest.approx(planned.error, abs=1e-5)


def test_a_later_checkpoint_gets_pivots_of_its_own(model, images):
    fitted = SVDCompressor(rank=4, scheme="output", pivot=True).fit(model)
    later = make_model(seed=1)
    expected = SVDCompressor(rank=4, scheme="output").fit_transform(later)
    small = fitted.transform(later)
    assert distance(small(images), expected(images)) < 1e-5
    assert count_parameters(small) == fitted.n_parameters_out_


@every_compressor
def test_a_model_on_the_meta_device_gives_the_structure(compressor, model, images):
    fitted = clone(compressor).set_params(pivot=True, rank=3)
    small = fitted.fit_transform(model)
    hollow = fitted.transform(copy.deepcopy(model).to("meta"))
    assert {k: (v.shape, v.dtype) for k, v in hollow.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in small.state_dict().items()
    }
    assert all(b.is_meta for b in hollow.buffers())
    hollow.load_state_dict(small.state_dict(), assign=True)
    assert torch.equal(hollow(images), small(images))


@every_compressor
def test_plan_survives_json(compressor, model):
    fitted = clone(compressor).set_params(pivot=True, rank=3).fit(model)
    revived = Plan.from_dict(json.loads(json.dumps(fitted.plan_.to_dict())))
    assert revived == fitted.plan_
    stages = [stage for planned in revived for stage in planned.stages]
    assert any(s.pivots is not None for s in stages)
    assert all(sum(s.size for s in p.stages) * p.groups == p.after for p in revived if p.rank)


def test_plans_from_before_there_were_pivots_are_read(model):
    data = SVDCompressor(rank=3).fit(model).plan_.to_dict()
    for item in data["layers"]:
        for stage in item["stages"]:
            del stage["pivots"]
    assert Plan.from_dict(data) == SVDCompressor(rank=3).fit(model).plan_


def test_inverse_transform_is_dense_with_the_same_function(model, images):
    fitted = SVDCompressor(rank=0.5, scheme="output", pivot=True)
    small = fitted.fit_transform(model)
    back = fitted.inverse_transform(small)
    assert not any(isinstance(m, PivotedFactor) for m in back.modules())
    assert count_parameters(back) == count_parameters(model)
    assert distance(back(images), small(images)) < 1e-5


def test_fitted_compressor_pickles(model, images):
    fitted = SVDCompressor(rank=0.5, pivot=True).fit(model)
    revived = pickle.loads(pickle.dumps(fitted))
    assert torch.equal(revived.transform(model)(images), fitted.transform(model)(images))


def test_warm_start_notices_the_switch(model):
    fitted = SVDCompressor(rank=3, scheme="output", warm_start=True).fit(model)
    plain = fitted.n_parameters_out_
    fitted.set_params(pivot=True).fit(model)
    assert fitted.n_parameters_out_ < plain
    assert fitted.n_parameters_out_ == count_parameters(fitted.transform(model))


@pytest.mark.parametrize("reconstruction", ["independent", "sequential"])
@pytest.mark.parametrize("scheme", ["auto", "output", "input"])
def test_data_gives_the_same_network_in_fewer_numbers(scheme, reconstruction, model, images):
    settings = {"rank": 3, "reconstruction": reconstruction, "scheme": scheme}
    plain, pivoted = both(SVDCompressor(), **settings)
    expected = plain.fit_transform(model, images)
    small = pivoted.fit_transform(model, images)
    assert pivoted.ranks_ == plain.ranks_
    assert pivoted.n_parameters_out_ == count_parameters(small) < plain.n_parameters_out_
    assert distance(small(images), expected(images)) < 1e-4
    assert distance(pivoted.transform(model)(images), small(images)) < 1e-6
    with pytest.raises(CalibratedWeightError):
        pivoted.transform(make_model(seed=1))


def test_data_and_a_budget_reach_ranks_that_only_pivots_pay_for(model, images):
    fitted = SVDCompressor(rank=0.95, scheme="output", allocation="uniform", pivot=True)
    small = fitted.fit_transform(model, images)
    planned = fitted.plan_["5"]
    assert planned.rank > 32 * 288 / (32 + 288)
    assert count_parameters(small) == fitted.n_parameters_out_
    with torch.no_grad():
        assert distance(small(images), model(images)) < 0.3


def test_decompositions_whose_last_factor_is_fitted_are_pivoted_too(model, images):
    fitted = LowRankCompressor(("tucker", "svd"), rank=3, pivot=True).fit(model, images)
    assert {p.scheme for p in fitted.plan_ if p.rank} == {"output, pivoted", "tucker, pivoted"}
