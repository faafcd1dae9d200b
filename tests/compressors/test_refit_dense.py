"""`refit_dense`: weights that stay dense make up for what was lost before them."""

from __future__ import annotations

import copy

import pytest
import torch
from data_cases import error, train
from models import seeded
from torch import nn
from torch.nn.utils import parametrizations

from skcompress import SVDCompressor, TuckerCompressor, count_parameters
from skcompress.errors import CalibratedWeightError
from skcompress.testing import check_untouched, snapshot


def build():
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
        nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(24, 24, 3, padding=1, bias=False, groups=2), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def images(digits):
    return digits[0]


@pytest.fixture(scope="module")
def model(digits):
    return train(seeded(build), *digits, lr=3e-3, n_epochs=4)


@pytest.mark.parametrize("compressor", [SVDCompressor, TuckerCompressor])
@pytest.mark.parametrize("ranks", [{"3": 4}, {"3": 3, "11": 4}, {"6": 3}], ids=str)
def test_what_stays_dense_makes_up_for_the_rest(ranks, compressor, model, images):
    seen, new = images[:600], images[1200:]
    before = snapshot(model)
    plain, refitted = (
        compressor(ranks, refit_dense=refit, recalibrate_norm=False) for refit in (False, True)
    )
    small = plain.fit_transform(model, seen), refitted.fit_transform(model, seen)
    check_untouched("refit_dense", model, before)
    assert plain.plan_ == refitted.plan_
    assert [count_parameters(s) for s in small] == [plain.n_parameters_out_] * 2
    assert error(model, small[1], seen) < 0.9 * error(model, small[0], seen)
    assert error(model, small[1], new) < 0.95 * error(model, small[0], new)
    assert refitted.report_.divergence < plain.report_.divergence
    last = small[1][13]
    assert isinstance(last, nn.Linear)
    assert not torch.equal(last.weight, model[13].weight)
    # In front of the first that is compressed nothing is lost.
    if "3" in ranks:
        assert torch.allclose(small[1][0].weight, model[0].weight, atol=1e-3)
    again = refitted.transform(model)
    assert all(map(torch.equal, small[1].state_dict().values(), again.state_dict().values()))
    skeleton = refitted.transform(copy.deepcopy(model).to("meta"))
    assert skeleton.state_dict().keys() == small[1].state_dict().keys()


def test_the_refitted_weight_is_least_squares(model, images):
    # Of the original's outputs on what the compressed network gives, in float64.
    x = images[:600]
    compressor = SVDCompressor({"3": 4}, refit_dense=True, recalibrate_norm=False)
    small = compressor.fit_transform(model, x)
    with torch.no_grad():
        goal = model[:14](x).double()
        given = small[:13](x).double()
        centred = given - given.mean(0), goal - goal.mean(0)
        found = small[13](given.float()).double()
    best = centred[0] @ torch.linalg.lstsq(*centred, driver="gelsd").solution
    least = float((centred[1] - best).square().sum())
    lost = found - goal
    assert float(lost.mean(0).abs().max()) < 1e-4  # the bias takes the mean
    assert least <= float(lost.square().sum()) < least + 1e-2 * float(centred[1].square().sum())
    # Less than the original weight loses there.
    with torch.no_grad():
        kept = model[13](given.float()).double() - goal
    assert float(lost.square().sum()) < float(kept.square().sum())


class Memo(nn.Module):
    """A dense layer called by two names, and one whose weight is computed."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(64, 48)
        self.one, self.other = nn.Linear(48, 48), nn.Linear(48, 48)
        self.other.weight = self.one.weight
        self.computed = parametrizations.weight_norm(nn.Linear(48, 48))
        self.last = nn.Linear(48, 10)

    def forward(self, x):
        x = self.first(x.flatten(1)).relu()
        return self.last(self.computed(self.other(self.one(x).relu())).relu())


def test_weights_that_are_shared_or_computed_are_left_alone(images):
    model = seeded(Memo).eval()
    compressor = SVDCompressor({"first": 6}, refit_dense=True)
    small = compressor.fit_transform(model, images[:500])
    assert list(compressor.ranks_) == ["first"]
    assert small.one.weight is small.other.weight
    kept, expected = small.state_dict(), model.state_dict()
    for name in expected:
        if name.startswith(("one", "other", "computed")):
            assert torch.equal(kept[name], expected[name])
    assert not torch.equal(small.last.weight, model.last.weight)


def test_other_weights_are_refused(model, images):
    compressor = SVDCompressor({"3": 4}, refit_dense=True).fit(model, images[:300])
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[11].weight.mul_(1.1)
    with pytest.raises(CalibratedWeightError, match="'11' is not the one that was fitted"):
        compressor.transform(other)


def test_independent_layers_have_nothing_to_make_up_for(model, images):
    compressor = SVDCompressor({"3": 4}, refit_dense=True, reconstruction="independent")
    small = compressor.fit_transform(model, images[:300])
    assert torch.equal(small[13].weight, model[13].weight)
