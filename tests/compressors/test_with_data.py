"""`fit(model, data)`: factors for the inputs that each layer meets."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle

import pytest
import torch
from data_cases import error, images, network, train
from models import seeded
from torch import nn

from skcompress import SVDCompressor
from skcompress.decompositions.svd import SVD
from skcompress.errors import CalibratedWeightError, MissingDataError, OneShotDataError
from skcompress.fitting import calibration
from skcompress.testing import check_untouched, snapshot


@pytest.mark.parametrize("keep", [0.7, 0.4, 0.2])
def test_outputs_are_closer_than_without_data_on_new_inputs_too(keep):
    model, x, new = network(), images(), images(seed=2)
    plain = SVDCompressor(rank=keep).fit_transform(model)
    small = SVDCompressor(rank=keep, reconstruction="independent").fit_transform(model, x)
    assert error(model, small, new) < 0.7 * error(model, plain, new)
    counted = sum(p.numel() for p in small.parameters())
    assert counted <= keep * sum(p.numel() for p in model.parameters())


def test_predicted_error_is_that_of_the_layers_outputs():
    layer, x = seeded(lambda: nn.Linear(30, 20)), torch.randn(500, 4) @ torch.randn(4, 30) + 1.0
    compressor = SVDCompressor(rank=3)
    small = compressor.fit_transform(nn.Sequential(layer), x)
    with torch.no_grad():
        lost = layer(x) - small(x)
        spread = layer(x) - layer(x).mean(0)
        assert float(lost.mean(0).norm()) < 1e-4 * float(layer(x).norm())  # the bias takes it
        measured = float(lost.norm() / spread.norm())
    assert compressor.plan_["0"].error == pytest.approx(measured, abs=2e-2)


class Crooked(nn.Module):
    """Layers registered in another order than they run in, one of them twice, and a residual."""

    def __init__(self):
        super().__init__()
        self.last, self.second = nn.Linear(96, 10), nn.Linear(96, 96)
        self.twice, self.first = nn.Linear(96, 96), nn.Linear(64, 96)

    def forward(self, x):
        x = self.first(x.flatten(1)).relu()
        x = x + self.twice(self.second(x).relu())
        return self.last(self.twice(x).relu_())


def convolutional():
    """Five convolutions: what one loses, the next ones can make up for."""
    widths, layers = [1, 24, 24, 24, 24, 24], []
    for inputs, out in itertools.pairwise(widths):
        layers += [nn.Conv2d(inputs, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
    layers.insert(6, nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10))


@pytest.mark.parametrize(("build", "keep"), [(convolutional, 0.25), (Crooked, 0.25)])
def test_sequential_makes_up_for_the_layers_before(build, keep, digits):
    images, labels = digits
    model = train(seeded(build), images, labels, lr=2e-3, n_epochs=6)
    test, right = images[1200:], labels[1200:]

    def accuracy(network):
        with torch.no_grad():
            return float((network(test).argmax(1) == right).float().mean())

    small = {
        way: SVDCompressor(rank=keep, reconstruction=way).fit_transform(model, images[:400])
        for way in ("independent", "sequential", "auto")
    }
    plain = SVDCompressor(rank=keep).fit_transform(model)
    assert error(model, small["independent"], test) < error(model, plain, test)
    assert error(model, small["sequential"], test) < 0.85 * error(model, small["independent"], test)
    assert accuracy(small["sequential"]) > accuracy(model) - 0.1
    assert error(small["auto"], small["sequential"], test) == 0.0


def test_whitened_factors_are_optimal():
    x = torch.randn(400, 30, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -2, 30)
    layer = seeded(lambda: nn.Linear(30, 20, bias=False))
    for rank in (2, 5, 8):
        small = SVDCompressor(rank=rank).fit_transform(layer, x)
        with torch.no_grad():
            values = torch.linalg.svdvals(layer(x).double())
            lost = float((layer(x) - small(x)).double().square().sum())
        optimal = float(values[rank:].square().sum())
        assert lost <= optimal + 1e-4 * float(values.square().sum())


def test_full_rank_keeps_the_function():
    model, x = network(), images()
    small = SVDCompressor(rank={"0": 26, "3": 20, "7": 27, "9": 7}, scheme="output")
    result = small.fit_transform(model, x)
    assert set(small.ranks_) <= {"0", "3", "7", "9"}
    full = SVDCompressor(rank=1.0).fit_transform(model, x)
    assert error(model, full, x) < 1e-5
    assert error(model, result, x) < 0.5


def test_the_model_and_the_data_stay_as_they_were():
    model, x = network().train(), images()
    before, data = snapshot(model), x.clone()
    state = torch.get_rng_state()
    SVDCompressor(rank=0.4).fit_transform(model, x)
    check_untouched("SVDCompressor", model, before)
    assert torch.equal(x, data)
    assert torch.equal(state, torch.get_rng_state())


def test_the_same_data_in_all_its_forms():
    model, x = network(), images()
    pairs = torch.utils.data.TensorDataset(x, torch.zeros(len(x)))
    loader = torch.utils.data.DataLoader(pairs, batch_size=16)
    forms = [x, x.numpy(), [x[:20], x[20:]], [(x, None)], [{"input": x}], loader]
    # Which positions are drawn depends on how the samples are batched.
    plans = [SVDCompressor(rank=0.4, max_positions=None).fit(model, f).plan_ for f in forms]
    assert all(plan == plans[0] or _close(plan, plans[0]) for plan in plans)


def _close(plan, other):
    return all(
        (a.rank, a.scheme) == (b.rank, b.scheme) and a.error == pytest.approx(b.error, rel=1e-3)
        for a, b in zip(plan, other, strict=True)
    )


def test_transform_of_the_same_weights_of_others_and_of_none():
    model, x = network(), images()
    compressor = SVDCompressor(rank=0.4).fit(model, x)
    once, again = compressor.transform(model), compressor.transform(copy.deepcopy(model))
    assert all(map(torch.equal, once.state_dict().values(), again.state_dict().values()))
    one_call = SVDCompressor(rank=0.4).fit_transform(model, x)
    assert all(map(torch.equal, once.state_dict().values(), one_call.state_dict().values()))
    travelled = pickle.loads(pickle.dumps(compressor)).transform(model)
    assert all(map(torch.equal, once.state_dict().values(), travelled.state_dict().values()))

    skeleton = compressor.transform(copy.deepcopy(model).to("meta"))
    skeleton.load_state_dict(once.state_dict(), assign=True)
    assert error(once, skeleton, x) == 0.0

    other = copy.deepcopy(model)
    with torch.no_grad():
        other[7].weight[0, 0] += 1.0
    with pytest.raises(CalibratedWeightError, match="layer '7' is not the one that was fitted"):
        compressor.transform(other)


def test_warm_start_needs_no_statistics_and_notices_other_data(monkeypatch):
    model, x = network(), images()
    settings = {"reconstruction": "independent", "warm_start": True}
    compressor = SVDCompressor(rank=0.4, **settings).fit(model, x)
    measured, factorised = [], []
    stream = calibration.stream
    monkeypatch.setattr(calibration, "stream", _noting(stream, measured))
    monkeypatch.setattr(SVD, "factorize", _noting(SVD.factorize, factorised))
    compressor.set_params(rank=0.6).fit(model, x)
    assert not measured
    assert not factorised
    plan = compressor.plan_
    for data in (images(seed=3), x.mul_(2.0)):
        measured.clear(), factorised.clear()
        compressor.fit(model, data)
        assert [site.name for site in measured[0]] == ["0", "3", "7", "9"]
        assert factorised
    with torch.no_grad():
        model[7].weight.mul_(2.0)
    measured.clear()
    compressor.fit(model, x)
    # What comes after it is given other inputs.
    assert "9" in [site.name for site in measured[0]]
    monkeypatch.undo()
    assert plan == SVDCompressor(rank=0.6, **settings).fit(network(), images()).plan_


def test_warm_start_with_reconstruction_is_a_fresh_fit():
    model, x = network(), images()
    tokens = seeded(lambda: nn.Sequential(nn.Embedding(60, 16), nn.Linear(16, 40)))
    rows = torch.randint(60, (50, 3), generator=torch.Generator().manual_seed(0))
    for network_, data in ((model, x), (tokens, rows)):
        warm = SVDCompressor(warm_start=True)
        for rank in (0.4, 0.7, 0.5):
            small = warm.set_params(rank=rank).fit_transform(network_, data)
            fresh = SVDCompressor(rank=rank).fit_transform(network_, data)
            assert all(map(torch.equal, small.state_dict().values(), fresh.state_dict().values()))


def _noting(function, calls):
    """Note the second argument of every call: the sites of a pass, the weight of a regression."""

    @functools.wraps(function)
    def noted(*args, **kwargs):
        calls.append(args[1])
        return function(*args, **kwargs)

    return noted


def test_a_layer_that_no_batch_reaches_stays_dense_and_says_so():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(30, 30), nn.Linear(30, 30)

        def forward(self, x, other=False):
            return self.unused(x) if other else self.used(x)

    compressor = SVDCompressor(rank=0.8).fit(seeded(Branches), torch.randn(50, 30))
    assert compressor.plan_["unused"].reason == "no batch of the data reaches it"
    assert compressor.plan_["used"].rank is not None


def test_an_embedding_keeps_what_is_looked_up():
    model = seeded(lambda: nn.Sequential(nn.Embedding(100, 16), nn.Linear(16, 4)))
    tokens = torch.randint(10, (200,), generator=torch.Generator().manual_seed(0))
    aware = SVDCompressor(rank={"0": 8}).fit_transform(model, tokens[:, None])
    plain = SVDCompressor(rank={"0": 8}).fit_transform(model)
    rows = torch.arange(10)
    assert error(model[0], aware[0], rows) < 0.6 * error(model[0], plain[0], rows)


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval(),
        lambda: nn.LSTM(16, 24, num_layers=2, batch_first=True),
        lambda: nn.Sequential(nn.ConvTranspose1d(7, 16, 4, stride=2, groups=1)),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(16, 24)),
    ],
)
def test_every_kind_of_layer(build):
    model, x = seeded(build), torch.randn(40, 7, 16, generator=torch.Generator().manual_seed(0))
    compressor = SVDCompressor(rank=0.7)
    small = compressor.fit_transform(model, x)
    assert compressor.ranks_
    with torch.no_grad():
        given = [m(x) for m in (model, small)]
    outputs = [y[0] if isinstance(y, tuple) else y for y in given]
    assert float((outputs[0] - outputs[1]).norm()) < 0.6 * float(outputs[0].norm())


def test_metric_weights_does_not_look_at_the_data():
    model = network()
    plan = SVDCompressor(rank=0.5, metric="weights").fit(model, iter([])).plan_
    assert plan == SVDCompressor(rank=0.5).fit(model).plan_


def test_what_is_missing():
    model, x = network(), images()
    with pytest.raises(MissingDataError, match="metric='activations' of SVDCompressor needs data"):
        SVDCompressor(metric="activations").fit(model)
    with pytest.raises(MissingDataError, match="metric='fisher' of SVDCompressor needs data"):
        SVDCompressor(metric="fisher").fit(model)
    with pytest.raises(MissingDataError, match="reconstruction='sequential' of SVDCompressor"):
        SVDCompressor(reconstruction="sequential").fit(model)
    with pytest.raises(MissingDataError):
        SVDCompressor(reconstruction="sequential", metric="weights").fit(model, x)
    with pytest.raises(OneShotDataError):
        SVDCompressor().fit(model, iter([x]))
