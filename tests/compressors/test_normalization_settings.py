"""Batch normalisation: what it takes over from layers, estimated anew, or folded away."""

from __future__ import annotations

import copy

import pytest
import torch
from data_cases import error
from models import seeded
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from skcompress import SVDCompressor, TuckerCompressor, count_parameters
from skcompress.errors import CalibratedWeightError
from skcompress.testing import check_untouched, snapshot


def conv(*args, **kwargs):
    return nn.Conv2d(*args, 3, padding=1, bias=False, **kwargs)


def build():
    return nn.Sequential(
        conv(3, 16), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 24, groups=2), nn.BatchNorm2d(24),
        nn.ReLU(), nn.Conv2d(24, 24, 3, stride=2), nn.BatchNorm2d(24), nn.ReLU(), nn.Flatten(),
        nn.Linear(24 * 9, 40, bias=False), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 10),
    )  # fmt: skip


def images(n=64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, 3, 3, 3, generator=generator) + 0.3
    return nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear")


def at_home(model, x):
    """Let the normalisations of a network see data, as in training; give it in eval mode."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for norm in (m for m in model.modules() if isinstance(m, _BatchNorm)):
            norm.momentum = None
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
        model.train()(x)
    return model.eval()


@pytest.fixture
def network():
    model = at_home(seeded(build), images())
    before = snapshot(model)
    yield model
    check_untouched("the user's model", model, before)


def given_and_giving(model, name, x):
    """What a module is given, and what it gives."""
    found = []
    hook = model.get_submodule(name).register_forward_hook(
        lambda module, args, output: found.append((args[0].detach(), output.detach()))
    )
    with torch.no_grad():
        model(x)
    hook.remove()
    return found[0]


def channel_means(tensor):
    return tensor.double().transpose(0, 1).flatten(1).mean(1)


# --- what a layer without bias loses of its mean ---------------------------------------


@pytest.mark.parametrize("way", ["independent", "sequential"])
@pytest.mark.parametrize(("layer", "norm"), [("0", "1"), ("3", "4"), ("10", "11")])
def test_means_of_normalised_outputs_stay(layer, norm, way):
    x = images()
    model = at_home(seeded(build), x)
    with torch.no_grad():
        model.get_submodule(norm).weight[0] = -1.5
        model.get_submodule(norm).weight[1] = 0.0
    before = model.get_submodule(norm).running_mean.clone()
    settings = {"reconstruction": way, "recalibrate_norm": False, "max_positions": None}
    small = SVDCompressor({layer: 2}, **settings).fit_transform(model, x)
    assert small.get_submodule(layer).bias is None
    means = [channel_means(given_and_giving(m, norm, x)[1]) for m in (model, small)]
    assert torch.allclose(*means, atol=1e-5)
    given = [channel_means(given_and_giving(m, norm, x)[0]) for m in (model, small)]
    assert float((given[0] - given[1]).abs().max()) > 1e-3  # there was something to make up for
    assert torch.equal(model.get_submodule(norm).running_mean, before)
    assert not torch.equal(small.get_submodule(norm).running_mean, before)


class Memo(nn.Module):
    """One normalisation after two layers."""

    def __init__(self):
        super().__init__()
        self.one, self.other, self.norm = conv(3, 16), conv(16, 16), nn.BatchNorm2d(16)

    def forward(self, x):
        return self.norm(self.other(self.norm(self.one(x)).relu()))


class Read(nn.Module):
    """What is normalised is also used as it is."""

    def __init__(self):
        super().__init__()
        self.one, self.norm, self.other = conv(3, 16), nn.BatchNorm2d(16), conv(16, 16)

    def forward(self, x):
        x = self.one(x)
        return self.other(x + self.norm(x))


class Functional(Read):
    """Something else than the normalisation reads the output first."""

    def forward(self, x):
        return self.other(self.norm(self.one(x).relu()))


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("kind", [Memo, Read, Functional])
def test_a_normalisation_of_something_else_is_left_alone(kind, fold):
    x = images()
    model = at_home(seeded(kind), x)
    compressor = SVDCompressor({"*": 2}, recalibrate_norm=False, fold_norm=fold)
    small = compressor.fit_transform(model, x)
    assert compressor.ranks_.keys() == {"one", "other"}
    for name, value in model.norm.state_dict().items():
        assert torch.equal(small.norm.state_dict()[name], value)


# --- estimated anew --------------------------------------------------------------------


def test_recalibrated_statistics_are_those_of_the_compressed_network(network):
    x = images()
    compressor = SVDCompressor(0.3, recalibrate_norm=True)
    small = compressor.fit_transform(network, [x])
    for name in ("1", "4", "7", "11"):
        norm = small.get_submodule(name)
        inputs = given_and_giving(small, name, x)[0]
        inputs = inputs.double().transpose(0, 1).flatten(1)
        assert torch.allclose(inputs.mean(1), norm.running_mean.double(), atol=1e-3)
        assert torch.allclose(inputs.var(1), norm.running_var.double(), rtol=2e-2)
        assert norm.momentum == network.get_submodule(name).momentum
        assert not norm.training
    again = compressor.transform(network)
    assert all(map(torch.equal, small.state_dict().values(), again.state_dict().values()))


@pytest.mark.parametrize("keep", [0.6, 0.3])
@pytest.mark.parametrize("way", ["independent", "sequential"])
@pytest.mark.parametrize("compressor", [SVDCompressor, TuckerCompressor])
def test_auto_recalibrates_where_it_helps_on_the_data(compressor, way, keep, network):
    found = {
        setting: compressor(keep, reconstruction=way, recalibrate_norm=setting)
        .fit(network, images())
        .report_.divergence
        for setting in (False, True, "auto")
    }
    assert found["auto"] == min(found[False], found[True])
    assert found[False] != found[True]


def test_auto_leaves_statistics_alone_that_are_of_other_data():
    # Freshly made: nothing to do with the data, so that new ones change the function.
    model, x = seeded(build).eval(), images()
    found = {
        setting: SVDCompressor(0.6, recalibrate_norm=setting).fit(model, x)
        for setting in (False, True, "auto")
    }
    divergences = {setting: c.report_.divergence for setting, c in found.items()}
    assert divergences["auto"] == divergences[False] < divergences[True]
    with torch.no_grad():
        same = [found[setting].transform(model)(x) for setting in (False, "auto")]
    assert torch.equal(*same)


def test_normalisations_without_statistics_are_passed_over():
    layers = [conv(3, 16), nn.BatchNorm2d(16, track_running_stats=False), nn.ReLU(), conv(16, 16)]
    model, x = seeded(lambda: nn.Sequential(*layers)).eval(), images()
    for recalibrate in (True, "auto"):
        small = SVDCompressor(0.5, recalibrate_norm=recalibrate).fit_transform(model, x)
        assert small[1].running_mean is None
        assert torch.isfinite(small(x)).all()


# --- folded away -----------------------------------------------------------------------


def test_folding_leaves_the_function_and_no_normalisation(network):
    x = images(seed=5)
    compressor = SVDCompressor(1.0, fold_norm=True)
    small = compressor.fit_transform(network, images())
    assert not any(isinstance(m, _BatchNorm) for m in small.modules())
    assert error(network, small, x) < 1e-5
    for name in ("0", "3", "6", "10"):
        assert small.get_submodule(name).bias is not None
    assert compressor.n_parameters_in_ == count_parameters(network)
    # Scales and shifts go, biases come where there were none.
    gone = 2 * (16 + 24 + 24 + 40) - (16 + 24 + 40)
    assert (
        compressor.n_parameters_out_
        == count_parameters(small)
        == (count_parameters(network) - gone)
    )


@pytest.mark.parametrize("pivot", [False, True])
@pytest.mark.parametrize("way", ["independent", "sequential"])
def test_folded_networks_are_compressed_as_others(way, pivot, network):
    x, new = images(), images(seed=5)
    compressor = SVDCompressor(0.5, fold_norm=True, reconstruction=way, pivot=pivot)
    small = compressor.fit_transform(network, x)
    assert count_parameters(small) == compressor.n_parameters_out_
    assert compressor.n_parameters_out_ <= 0.5 * count_parameters(network)
    assert not any(isinstance(m, _BatchNorm) for m in small.modules())
    plain = SVDCompressor(0.5, pivot=pivot).fit_transform(network)
    assert error(network, small, x) < 0.75 * error(network, plain, x)
    again = compressor.transform(network)
    assert all(map(torch.equal, small.state_dict().values(), again.state_dict().values()))
    copied = compressor.transform(copy.deepcopy(network))
    assert all(map(torch.equal, small.state_dict().values(), copied.state_dict().values()))
    skeleton = compressor.transform(copy.deepcopy(network).to("meta"))
    assert all(p.is_meta for p in skeleton.parameters())
    skeleton.load_state_dict(small.state_dict(), assign=True)
    assert error(small, skeleton, new) == 0.0


@pytest.mark.parametrize("settings", [{"fold_norm": True}, {"recalibrate_norm": True}], ids=str)
def test_other_weights_are_refused(settings, network):
    compressor = SVDCompressor({"3": 2}, **settings).fit(network, images())
    # Folded, the normalisation is part of the weight.
    for change in ["3.weight"] + ["4.weight", "4.running_var"] * ("fold_norm" in settings):
        other = copy.deepcopy(network)
        other.state_dict()[change].mul_(1.5)
        with pytest.raises(CalibratedWeightError, match="'3' is not the one that was fitted"):
            compressor.transform(other)
    compressor.transform(network)


def test_training_mode_survives_folding(network):
    network.train()
    try:
        small = SVDCompressor(0.5, fold_norm=True).fit_transform(network, images())
        assert all(module.training for module in small.modules())
    finally:
        network.eval()
