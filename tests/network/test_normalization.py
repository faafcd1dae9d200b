"""Batch normalisations after layers: found, folded in, and estimated anew."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from models import random, seeded
from torch import nn
from torch.nn.utils import parametrizations

from skcompress import SVDCompressor
from skcompress.network.batches import batches
from skcompress.network.normalization import fold
from skcompress.network.structure import look
from skcompress.statistics.norms import estimated
from skcompress.testing.untouched import check_untouched, snapshot


def spread_(model, seed=0):
    """Give batch normalisations something to do."""
    for n, norm in enumerate(
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
    ):
        for k, name in enumerate(("running_mean", "running_var", "weight", "bias")):
            value = getattr(norm, name)
            if value is not None:
                drawn = random(*value.shape, seed=seed + 10 * n + k)
                value.data.copy_(drawn.abs() + 0.1 if name == "running_var" else drawn)
    return model


class Wired(nn.Module):
    """One layer and one normalisation, with a forward of the test's own."""

    def __init__(self, layer, norm, wiring):
        super().__init__()
        self.layer, self.norm, self.wiring = layer, norm, wiring

    def forward(self, x):
        return self.wiring(self, x)


def plain(m, x):
    return m.norm(m.layer(x))


def conv():
    return nn.Conv2d(3, 4, 3)


def found(layer, norm, wiring, x):
    model = seeded(lambda: Wired(layer(), norm(), wiring)).double()
    before = snapshot(model)
    result = look(model, ["layer"], batches("Test", x, model)).norms
    check_untouched("look", model, before)
    return {name: given.name for name, given in result.items()}


IMAGES, ROWS = random(4, 3, 6, 6), random(8, 5)


@pytest.mark.parametrize(
    ("layer", "norm", "x"),
    [
        (conv, lambda: nn.BatchNorm2d(4), IMAGES),
        (conv, lambda: nn.BatchNorm2d(4, affine=False), IMAGES),
        (lambda: nn.ConvTranspose2d(3, 4, 3), lambda: nn.BatchNorm2d(4), IMAGES),
        (lambda: nn.Conv1d(3, 4, 3), lambda: nn.BatchNorm1d(4), IMAGES[..., 0]),
        (lambda: nn.Linear(5, 4), lambda: nn.BatchNorm1d(4), ROWS),
    ],
)
def test_found(layer, norm, x):
    assert found(layer, norm, plain, x) == {"layer": "norm"}


def second_reader(m, x):
    y = m.layer(x)
    return m.norm(y) + y


def given_back(m, x):
    y = m.layer(x)
    return m.norm(y), {"features": [y]}


def in_place_between(m, x):
    return m.norm(m.layer(x).relu_())


def view_between(m, x):
    return m.norm(m.layer(x).view(4, 4, -1, 1))


def norm_twice(m, x):
    return m.norm(m.norm(m.layer(x)))


def layer_twice(m, x):
    return m.norm(m.layer(x)) + m.layer(x)


def functional(m, x):
    return F.batch_norm(m.layer(x), m.norm.running_mean, m.norm.running_var)


@pytest.mark.parametrize(
    "wiring",
    [
        second_reader,
        given_back,
        in_place_between,
        view_between,
        norm_twice,
        layer_twice,
        functional,
    ],
)
def test_not_found_where_others_see_the_outputs(wiring):
    assert found(conv, lambda: nn.BatchNorm2d(4), wiring, IMAGES) == {}


@pytest.mark.parametrize(
    ("layer", "norm", "x"),
    [
        (conv, lambda: nn.BatchNorm2d(4, track_running_stats=False), IMAGES),
        (lambda: nn.Linear(5, 7), lambda: nn.BatchNorm1d(7), random(3, 7, 5)),
        (lambda: nn.Embedding(9, 4), lambda: nn.BatchNorm1d(6), torch.ones(3, 6, dtype=torch.long)),
        (lambda: nn.Conv1d(3, 4, 3), lambda: nn.BatchNorm1d(5), random(3, 7)),
    ],
)  # fmt: skip
def test_not_found_where_it_is_not_over_the_outputs(layer, norm, x):
    assert found(layer, norm, plain, x) == {}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("layer", "norm", "x"),
    [
        (
            lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False),
            lambda: nn.BatchNorm2d(6),
            random(2, 4, 5, 5),
        ),
        (lambda: nn.ConvTranspose2d(3, 4, 3), lambda: nn.BatchNorm2d(4, affine=False), IMAGES),
        (lambda: nn.Linear(5, 4, bias=False), lambda: nn.BatchNorm1d(4), ROWS),
    ],
)
def test_folding_is_exact_and_keeps_modes(layer, norm, x, training):
    model = seeded(lambda: nn.ModuleList([nn.Sequential(layer(), norm())])).double()
    model = spread_(nn.Sequential(*model)).train(training)
    before = snapshot(model)
    folded = fold(model, {"0.0": "0.1"})
    check_untouched("fold", model, before)
    assert all(module.training is training for module in folded.modules())
    torch.testing.assert_close(
        folded.eval()(x), copy.deepcopy(model).eval()(x), rtol=1e-9, atol=1e-9
    )
    assert isinstance(folded[0][1], nn.Identity)


def test_folding_reaches_a_layer_under_all_its_names():
    class Aliased(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Linear(5, 4), nn.BatchNorm1d(4)
            self.steps = nn.ModuleList([self.first, self.norm])

        def forward(self, x):
            for step in self.steps:
                x = step(x)
            return x

    model = spread_(seeded(Aliased).double()).eval()
    folded = fold(model, {"first": "norm"})
    assert folded.steps[0] is folded.first
    torch.testing.assert_close(folded(ROWS), model(ROWS))


def test_folding_in_half_precision_loses_no_more_than_rounding():
    model = spread_(seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))).double())
    model[1].running_var.fill_(1e-7)  # zero in half precision, where it is squared or inverted
    model = model.half().eval()
    exact = copy.deepcopy(model).double()(ROWS)
    folded = fold(model, {"0": "1"})
    assert folded[0].weight.dtype is torch.float16
    assert (folded.double()(ROWS) - exact).norm() < 2e-3 * exact.norm()


def test_weights_that_are_shared_are_not_folded():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
            self.b.weight = self.a.weight
            self.c, self.norms = nn.Linear(6, 6), nn.ModuleList(nn.BatchNorm1d(6) for _ in range(3))

        def forward(self, x):
            for layer, norm in zip((self.a, self.b, self.c), self.norms, strict=True):
                x = norm(layer(x))
            return x

    model, x = spread_(seeded(Tied)).eval(), random(40, 6, dtype=torch.float32)
    small = SVDCompressor(rank=6, fold_norm=True).fit_transform(model, x)
    kinds = [type(norm).__name__ for norm in small.norms]
    assert kinds == ["BatchNorm1d", "BatchNorm1d", "Identity"]
    torch.testing.assert_close(small(x), model(x), rtol=1e-3, atol=1e-3)


def deep():
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4))


@pytest.mark.parametrize("training", [True, False])
def test_estimates_are_those_of_the_data(training):
    model = spread_(seeded(deep).double()).train(training)
    model[1].momentum = 0.3
    before, x = snapshot(model), random(100, 5) + 3
    result = estimated(model, batches("Test", x, model, batch_size=33))  # the last of one input
    check_untouched("estimated", model, before)
    assert model[1].momentum == 0.3
    with torch.no_grad():
        y = model[0](x)
    mean, variance = result["1"]
    torch.testing.assert_close(mean, y.mean(0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(variance, y.var(0), rtol=1e-9, atol=1e-9)
    whole = estimated(model, batches("Test", x, model, batch_size=100))
    with torch.no_grad():
        z = F.batch_norm(y, None, None, model[1].weight, model[1].bias, training=True).relu()
    torch.testing.assert_close(whole["3"][0], z.mean(0))


def test_estimates_of_images_and_of_float32():
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    x = random(20, 3, 6, 6, dtype=torch.float32) + 5
    mean, variance = estimated(model, batches("Test", x, model, batch_size=6))["1"]
    with torch.no_grad():
        y = model[0](x).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, y.mean(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(variance, y.var(1), rtol=1e-5, atol=1e-5)


def test_normalisations_that_nothing_reaches_keep_what_they_have():
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.aside = deep(), nn.BatchNorm1d(4)

        def forward(self, x):
            return self.main(x)

    model = spread_(seeded(Aside).double())
    assert set(estimated(model, batches("Test", ROWS, model))) == {"main.1", "main.3"}


@pytest.mark.parametrize("n", [65, 64])
def test_a_last_batch_of_one_input_fits(n):
    model = spread_(seeded(deep)).eval()
    x = random(n, 5, dtype=torch.float32)
    small = SVDCompressor(rank=2, recalibrate_norm=True).fit_transform(model, x)
    assert small(x).isfinite().all()


def test_computed_weights_are_left_alone():
    model = seeded(
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 4)), nn.BatchNorm1d(4))
    ).eval()
    x = random(40, 5, dtype=torch.float32)
    small = SVDCompressor(rank=4, fold_norm=True).fit_transform(model, x)
    torch.testing.assert_close(small(x), model(x), rtol=1e-3, atol=1e-4)
