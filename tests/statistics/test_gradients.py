"""Second moments of gradients at the outputs of weights, against float64 references."""

from __future__ import annotations

import copy
import random as python_random

import numpy as np
import pytest
import torch
from models import random, seeded
from statistics_cases import statistics
from test_statistics_laws import CONVOLUTIONS
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from skcompress.errors import (
    CalibrationValueError,
    ForwardError,
    NonFiniteGradientError,
    NonFiniteOutputError,
)
from skcompress.layers import kind_of
from skcompress.layers.inputs import arguments
from skcompress.network.batches import batches
from skcompress.network.weights import select
from skcompress.statistics.backward import score as draw_score
from skcompress.statistics.divergence import divergence
from skcompress.statistics.gradients import kfac_energy, output_moments
from skcompress.statistics.outputs import Form
from skcompress.testing.untouched import check_untouched, snapshot


def moments(model, data, **settings):
    return dict(
        output_moments(model, select(model).sites, batches("Test", data, model), **settings)
    )


def deltas(model, data, names, cotangent):
    """Gradients at the outputs of the named modules, one list of calls for each."""
    added = {name: [] for name in names}

    def hook(name):
        def add(module, args, output):
            added[name].append(torch.zeros_like(output, requires_grad=True))
            return output + added[name][-1]

        return add

    model = copy.deepcopy(model).eval()
    for name in names:
        model.get_submodule(name).register_forward_hook(hook(name))
    output = model(data)
    flat = [delta for calls in added.values() for delta in calls]
    gradients = iter(torch.autograd.grad(output, flat, cotangent.reshape(output.shape)))
    return {name: [next(gradients) for _ in calls] for name, calls in added.items()}


def columns(gradient, groups, channels_last):
    """(groups, out, positions)."""
    if channels_last:
        gradient = gradient.reshape(-1, gradient.shape[-1])
        return gradient.mT[None]
    return gradient.movedim(1, 0).flatten(1).unflatten(0, (groups, -1))


@pytest.fixture
def known_labels(monkeypatch):
    """Cotangents (rows, size) that tests know too."""

    def score(rows, form, draw, generator):
        return random(*rows.shape, seed=5, dtype=rows.dtype)

    monkeypatch.setattr("skcompress.statistics.gradients.score", score)
    return lambda *shape: random(*shape, seed=5)


class Network(nn.Module):
    """Every kind that shows its outputs, one of them called twice, with writes in place."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 6, (3, 2), stride=2, groups=2)
        self.transposed = nn.ConvTranspose2d(6, 8, 3, stride=2, groups=2)
        self.twice = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)
        self.idle = nn.Linear(8, 5)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.act(self.norm(self.conv(x)))
        x = self.act(self.transposed(self.act(self.grouped(x))))
        x = self.act(self.twice(x.flatten(2).mT))
        x = self.twice(x).mul_(0.5)
        return self.head(x.mean(1))


GROUPS = {"conv": 1, "grouped": 2, "transposed": 2, "twice": 1, "head": 1}
X = random(6, 3, 8, 8)


def network():
    return seeded(Network).double()


@pytest.mark.parametrize("frozen", [False, True])
def test_moments_of_a_network(known_labels, frozen):
    model = network().requires_grad_(not frozen)
    expected = deltas(model, X, GROUPS, known_labels(6, 5))
    with torch.no_grad():
        found = moments(model, X)
    assert list(found) == list(GROUPS)
    for name, groups in GROUPS.items():
        g = torch.cat([columns(c, groups, name in ("twice", "head")) for c in expected[name]], -1)
        torch.testing.assert_close(found[name], g @ g.mT / 6, rtol=1e-6, atol=1e-12)
        assert found[name].dtype == torch.float64
    assert all(p.grad is None for p in model.parameters())


def test_a_hook_of_the_users_that_changes_an_output(known_labels):
    model = nn.Sequential(seeded(lambda: nn.Linear(6, 3)).double())
    model[0].register_forward_hook(lambda module, args, output: 2 * output)
    g = 2 * known_labels(4, 3)
    torch.testing.assert_close(moments(model, random(4, 6))["0"][0], g.mT @ g / 4)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_outputs_have_the_positions_of_inputs(name):
    conv = seeded(CONVOLUTIONS[name]).double()
    x = random(2, conv.in_channels, *(9, 8, 7)[: len(conv.kernel_size)])
    for given in (x, x[0]):
        output = conv(given)
        call = arguments(conv, (given,), {})
        ((_, inputs),) = kind_of(conv).inputs(conv, [""], call)
        outputs = kind_of(conv).outputs(conv, output)[""]
        assert outputs.lead == inputs.lead
        (slot,) = kind_of(conv).slots(conv)
        (xs,), (ys,) = inputs.columns(None, 1 << 20), outputs.columns(None, 1 << 20)
        bias = 0 if conv.bias is None else conv.bias.reshape(conv.groups, -1, 1)
        torch.testing.assert_close(slot.read().flatten(2) @ xs + bias, ys)


def test_conv1d_of_transformers(known_labels):
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    model = nn.Sequential(seeded(lambda: conv1d(7, 6)), nn.Tanh(), nn.Linear(7, 3)).double()
    x = random(4, 6)
    found = moments(model, x)
    g = deltas(model, x, ["0"], known_labels(4, 3))["0"][0]
    torch.testing.assert_close(found["0"][0], g.mT @ g / 4, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("draw", ["labels", "signs"])
def test_softmax_regression(draw):
    """G = diag(p) - p p^T, and the cost of a small change is a KL divergence."""
    model = seeded(lambda: nn.Linear(6, 4)).double()
    x = random(1, 6).expand(20_000, 6)
    p = model(x[:1]).softmax(-1).detach()
    exact = p.diag_embed()[0] - p.mT @ p
    (found,) = moments(model, x, draw=draw).values()
    assert (found[0] - exact).norm() < 0.02 * exact.norm()
    assert (found.sum(-1)).abs().max() < 1e-6  # of probabilities that sum to one

    change = 1e-2 * random(4, 6, seed=3)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.weight += change
    gram = statistics(model, x)["(model)"].moments.of_inputs(centred=False)
    lost = divergence(model, other, batches("Test", x[:10], model))
    assert kfac_energy(change[None], gram, exact[None]) / 2 == pytest.approx(lost, rel=0.02)
    assert kfac_energy(change[None], gram, found) / 2 == pytest.approx(lost, rel=0.04)
    direct = (exact @ change @ gram[0].dense @ change.mT).trace().item()
    assert kfac_energy(change[None], gram, exact[None]) == pytest.approx(direct)


def test_signs_say_more_than_labels_where_the_model_is_sure():
    model = seeded(lambda: nn.Linear(6, 4)).double()
    with torch.no_grad():
        model.bias[0] += 6
    x = random(200, 6)
    p = model(x).softmax(-1).detach()
    exact = (p.diag_embed() - p[:, :, None] * p[:, None]).mean(0)
    errors = {
        draw: [
            (moments(model, x, draw=draw, seed=s)["(model)"][0] - exact).norm() for s in range(9)
        ]
        for draw in ("labels", "signs")
    }
    assert sum(errors["signs"]) < sum(errors["labels"]) / 3


@pytest.mark.parametrize("uniform", [0.0, 1.0])
def test_no_label_is_a_class_without_probability(monkeypatch, uniform):
    rows = torch.tensor([[-torch.inf, 1.0, 1.0, -torch.inf], [3.0, -torch.inf, 3.0, 3.0]])
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.full(size, uniform).double())
    score = draw_score(rows, Form(1), "labels", torch.Generator())
    assert torch.equal(score.argmax(1), torch.tensor([1, 0] if uniform == 0 else [2, 3]))
    assert (score == 0).equal(rows.isinf())


def jacobian_moment(model, x, name, fisher):
    """E over labels of g g^T at a linear layer's output, for one input."""
    after = model[int(name) + 1 :]
    y = model[: int(name) + 1](x).detach()[0]
    jacobian = torch.autograd.functional.jacobian(lambda y: after(y[None])[0], y)
    return jacobian.mT @ fisher @ jacobian


@pytest.mark.parametrize(
    ("likelihood", "draw"), [("categorical", "labels"), ("auto", "signs"), ("gaussian", "labels")]
)
def test_below_a_nonlinearity(likelihood, draw):
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))).double()
    xs = random(3, 6)
    found = moments(model, xs.repeat(8000, 1), likelihood=likelihood, draw=draw)
    for name in ("0", "2"):
        exact = 0
        for x in xs.split(1):
            p = model(x).softmax(-1).detach()[0]
            fisher = p.diag() - p[:, None] * p if likelihood != "gaussian" else torch.eye(3)
            exact += jacobian_moment(model, x, name, fisher.double()) / 3
        assert (found[name][0] - exact).norm() < 0.04 * exact.norm()


def test_probabilities_give_what_their_logits_give():
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))).double()
    x = random(20, 6)
    expected = moments(model, x)
    for last in (nn.Softmax(-1), nn.LogSoftmax(-1)):
        found = moments(nn.Sequential(*model, last), x)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head, self.pooled = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x, attention_mask=None):
        hidden = self.inner(x).tanh()
        return self.head(hidden) + self.pooled(hidden.mean(1))[:, None]


def test_masked_positions_do_not_count(known_labels):
    model = seeded(Tagger).double()
    x = random(3, 4, 6)
    mask = torch.arange(4) < torch.tensor([[4], [2], [1]])
    found = moments(model, [{"x": x, "attention_mask": mask.long()}])
    cotangent = torch.zeros(3, 4, 3, dtype=torch.float64)
    cotangent[mask] = known_labels(7, 3)
    expected = deltas(model, x, ["inner", "head", "pooled"], cotangent)
    for name, (gradient,) in expected.items():
        g = gradient if name == "pooled" else gradient[mask]
        torch.testing.assert_close(found[name][0], g.mT @ g / 7, rtol=1e-6, atol=1e-12)
    assert expected["inner"][0][~mask].abs().max() > 0


def test_labels_and_draws_are_seeded_whatever_the_passes():
    model = network().float()
    reads = []

    class Data(list):
        def __iter__(self):
            reads.append(len(self))
            return super().__iter__()

    data = Data([X[:4], X[4:]])
    for settings in ({}, {"max_positions": 10}):
        reads.clear()
        first = moments(model, data, **settings)
        drawn = moments(model, data, draw="labels", **settings)
        labels = moments(model, data, draw="labels", memory=8 * 64 + 1, **settings)
        assert all(torch.equal(labels[name], value) for name, value in drawn.items())
        del reads[1:]
        assert reads == [2]
        again = moments(model, data, **settings)
        cut = moments(model, data, memory=8 * 64 + 1, **settings)
        assert len(reads) == 2 + 4  # conv; grouped and transposed; twice; head
        other = moments(model, data, seed=1, **settings)
        for name, value in first.items():
            assert torch.equal(again[name], value)
            assert torch.equal(cut[name], value)
            assert not torch.equal(other[name], value)


def test_draws_of_positions_are_unbiased(known_labels):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(seeded(lambda: model), nn.Linear(4, 3)).double()
    exact = moments(model, X)["0.0"]
    errors = torch.stack(
        [moments(model, X, max_positions=20, seed=seed)["0.0"] - exact for seed in range(100)]
    )
    typical = errors.flatten(1).norm(dim=1).mean()
    assert typical > 0.01 * exact.norm()
    assert errors.mean(0).norm() < 3 * typical / 100**0.5


def test_only_the_diagonal_of_what_does_not_fit(known_labels):
    model = network()
    whole = moments(model, X)
    found = moments(model, X, memory=8 * 6**2)
    assert {name: value.dim() for name, value in found.items()} == {
        "conv": 2, "grouped": 3, "transposed": 3, "twice": 2, "head": 3,
    }  # fmt: skip
    for name, value in found.items():
        expected = whole[name] if value.dim() == 3 else whole[name].diagonal(dim1=1, dim2=2)
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-12)
    weight = model.conv.weight[None]
    gram = statistics(model, X)["conv"].moments.of_inputs(centred=False)
    by_row = kfac_energy(weight, gram, found["conv"])
    assert by_row == pytest.approx(kfac_energy(weight, gram, found["conv"].diag_embed()))


def test_what_no_gradient_reaches_is_absent():
    class Partial(nn.Module):
        def __init__(self):
            super().__init__()
            self.lookup = nn.Embedding(7, 6)
            self.fixed, self.inference, self.lost = (nn.Linear(6, 6) for _ in range(3))
            self.lstm = nn.LSTM(6, 6, batch_first=True)
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
            self.used, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, ids):
            x = self.lookup(ids)
            with torch.no_grad():
                x = x + self.fixed(x)
            with torch.inference_mode():
                seen = self.inference(x)
            self.lost(x)
            x, _ = self.lstm(x + seen.clone())
            x, _ = self.attention(self.used(x), x, x)
            return self.head(x)

    model = seeded(Partial)
    ids = torch.tensor([[0, 1, 2], [6, 6, 3]])
    for trained in (True, False):
        assert list(moments(model.requires_grad_(trained), ids)) == ["used", "head"]
    nothing = nn.Sequential(nn.Embedding(7, 6))
    assert moments(nothing, ids) == {}

    class Fixed(nn.Linear):
        @torch.no_grad()
        def __call__(self, x):
            return super().__call__(x)

    assert moments(nn.Sequential(Fixed(6, 3)), random(4, 6)) == {}


def test_an_inference_tensor_among_trained_layers_is_torchs_own_error():
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            with torch.inference_mode():
                x = self.one(x)
            return self.two(x)

    words = r"differentiated on batch 0 \(counted from 0\) of the data of Test.*nference"
    with pytest.raises(ForwardError, match=words) as caught:
        moments(Inside(), random(4, 6))
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_under_the_callers_inference_mode():
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)))
    x = random(20, 6, dtype=torch.float32)
    expected = moments(model, x)
    with torch.inference_mode():
        found = moments(model, x)
    for name, value in expected.items():
        assert torch.equal(found[name], value)


@pytest.mark.parametrize("frozen", [False, True])
def test_transformer_encoder(frozen):
    layer = seeded(lambda: nn.TransformerEncoderLayer(16, 4, 24, batch_first=True))
    model = nn.TransformerEncoder(layer, 2).eval().requires_grad_(not frozen)
    padding = torch.arange(5) >= torch.tensor([[5], [2], [4]])
    batch = {"src": random(3, 5, 16), "src_key_padding_mask": padding}
    found = moments(model, [batch])
    assert list(found) == [f"layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)]
    if frozen:
        trained = moments(model.requires_grad_(), [batch])
        for name, value in trained.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)


def test_bert_in_dict_batches():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        vocab_size=40, max_position_embeddings=8,
    )  # fmt: skip
    model = seeded(lambda: transformers.BertForMaskedLM(config)).eval()
    ids = 1 + random(3, 39).argsort(-1)[:, :6]
    mask = (torch.arange(6) < torch.tensor([[6], [2], [3]])).long()
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids}
    found = moments(model, [batch])
    assert len(found) == 2 * 6 + 2
    decoder = [name for name, value in found.items() if value.shape[1] == 40]
    assert len(decoder) == 1  # tied to the embedding


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype, known_labels):
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)))
    x = random(50, 8).to(dtype)
    found = moments(copy.deepcopy(model).to(dtype), x)
    expected = moments(copy.deepcopy(model).to(dtype).double(), x)
    for name, value in expected.items():
        assert (found[name] - value).norm() < 0.02 * value.norm()


@pytest.mark.parametrize("training", [True, False])
def test_the_model_and_random_numbers_are_untouched(training):
    model = network().train(training)
    gradients = [torch.full_like(p, 3.0) for p in model.parameters()]
    for p, g in zip(model.parameters(), gradients, strict=True):
        p.grad = g.clone()
    seen = []
    model.head.register_full_backward_hook(lambda *_: seen.append("module"))
    model.head.weight.register_hook(lambda *_: seen.append("parameter"))
    before = snapshot(model)
    states = (torch.get_rng_state(), np.random.get_state()[1].copy(), python_random.getstate())
    loader = DataLoader(TensorDataset(X, torch.arange(6)), batch_size=4, shuffle=True)
    moments(model, loader, max_positions=30)
    with pytest.raises(ForwardError, match=r"batch 1 .*of Test, .*float64 \(1, 2\)"):
        moments(model, [X, torch.ones(1, 2)])
    stream = output_moments(model, select(model).sites, batches("Test", X, model), memory=1)
    next(stream)
    assert torch.is_grad_enabled()
    with torch.no_grad():
        next(stream)
        assert not torch.is_grad_enabled()
    del stream
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])
    assert states[2] == python_random.getstate()
    check_untouched("output_moments", model, before)
    for p, g in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(p.grad, g)
    assert not seen


def test_a_forward_that_cannot_be_differentiated():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise NotImplementedError("no backward here")

    class Opaque(nn.Module):
        def forward(self, x):
            return Once.apply(x)

    model = nn.Sequential(nn.Linear(6, 5), Opaque(), nn.Linear(5, 3))
    before = snapshot(model)
    with pytest.raises(ForwardError, match=r"differentiated on batch 0 .*no backward here"):
        moments(model, [random(4, 6)])
    check_untouched("an error in backward", model, before)
    assert list(moments(model[:1], [random(4, 6)])) == ["0"]


def test_values_that_are_not_finite():
    class Root(nn.Module):
        def forward(self, x):
            return (x * 0).abs().sqrt() + x

    model = nn.Sequential(nn.Linear(6, 5), Root(), nn.Linear(5, 3))
    with pytest.raises(NonFiniteGradientError, match="layer '0'"):
        moments(model, random(4, 6))
    with torch.no_grad():
        model[2].bias[0] = float("nan")
    with pytest.raises(NonFiniteOutputError, match="batch 0"):
        moments(model, random(4, 6))


def test_settings_without_a_meaning():
    for settings in ({"memory": 0}, {"max_positions": 0}, {"likelihood": "poisson"}, {"draw": 3}):
        with pytest.raises(CalibrationValueError, match=next(iter(settings))):
            moments(nn.Linear(6, 3), random(4, 6), **settings)


def test_progress(capsys):
    moments(nn.Linear(6, 3), random(4, 6), verbose=True)
    assert "gradients" in capsys.readouterr().err
