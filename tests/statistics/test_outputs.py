"""Which output counts, which axis has its classes, and how far two models' outputs are apart."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from math import inf

import pytest
import torch
from models import random, seeded
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from skcompress.errors import (
    CalibrationValueError,
    ForwardError,
    NonFiniteOutputError,
    OutputShapeError,
    OutputTypeError,
)
from skcompress.network.batches import Batch, batches
from skcompress.statistics.divergence import divergence
from skcompress.statistics.outputs import Form, form_of, main_output
from skcompress.testing.untouched import check_untouched, snapshot

MAIN, OTHER = torch.ones(2, 3), torch.ones(2, 4)
IDS = torch.ones(2, 3, dtype=torch.int64)


@dataclass
class Result:
    loss: Tensor
    logits: Tensor


@pytest.mark.parametrize(
    "result",
    [
        MAIN,
        (MAIN, (OTHER, OTHER)),
        [IDS, {"ids": IDS, "x": MAIN}, OTHER],
        {"hidden": OTHER, "logits": MAIN},
        {"hidden": OTHER, "last_hidden_state": MAIN},
        Result(torch.tensor(1.0), MAIN),
        (torch.tensor(1.0), MAIN),
        torch.nn.utils.rnn.PackedSequence(MAIN, torch.tensor([2])),
    ],
    ids=range(8),
)
def test_the_main_output(result):
    assert main_output(result) is MAIN


@pytest.mark.parametrize(
    "result", [IDS, None, {}, torch.tensor(1.0), ("text", [IDS])], ids=range(5)
)
def test_outputs_that_cannot_be_compared(result):
    with pytest.raises(OutputTypeError, match=rf"{type(result).__name__} without any floating"):
        main_output(result)


def test_main_outputs_of_transformers():
    outputs = pytest.importorskip("transformers").modeling_outputs
    assert main_output(outputs.CausalLMOutput(loss=torch.tensor(1.0), logits=MAIN)) is MAIN
    hidden = outputs.BaseModelOutput(last_hidden_state=MAIN, hidden_states=(OTHER,))
    assert main_output(hidden) is MAIN
    assert form_of(hidden, Batch((), {})).axis is None
    assert form_of(outputs.CausalLMOutput(logits=MAIN), Batch((), {})).axis == 1


def test_embeddings_and_sigmoids_are_values():
    batch, output = Batch((torch.ones(5, 8),), {}), random(5, 3)
    for found in (nn.functional.normalize(output), output.sigmoid()):
        for given in (found, found.half()):
            assert form_of(given, batch) == Form(None)
            assert form_of(given, batch, "categorical") == Form(1)
            assert form_of({"logits": given}, batch) == Form(1)
    assert form_of(torch.zeros(5, 3), batch) == Form(1)  # of a head that has learnt nothing


@pytest.mark.parametrize(
    ("shape", "given", "axis"),
    [
        ((5, 3), (5, 8), 1),
        ((5, 3), (5, 3, 8, 8), 1),
        ((5, 3), (5, 3), None),  # as wide as the input
        ((5, 1), (5, 8), None),
        ((5,), (5, 8), None),
        ((5, 7, 4), (5, 7, 6), 2),
        ((5, 7, 4), (5, 9, 4), None),
        ((5, 4, 8, 8), (5, 3, 8, 8), 1),
        ((5, 3, 8, 8), (5, 3, 4, 4), None),
        ((5, 2, 8, 8, 8), (5, 1, 8, 8, 8), 1),
    ],
    ids=str,
)
def test_the_axis_of_classes(shape, given, axis):
    batch = Batch((torch.ones(given),), {})
    output = random(*shape)
    assert form_of(output, batch) == Form(axis)
    assert form_of(output, batch, "gaussian") == Form(None)
    if axis is not None:
        assert form_of(output, batch, "categorical") == Form(axis)
        positive = output.softmax(axis)
        assert form_of(positive, batch) == Form(axis, probabilities=True)
        assert form_of(positive.bfloat16(), batch) == Form(axis, probabilities=True)
        assert form_of(output.log_softmax(axis), batch) == Form(axis)
    if 1 in shape or len(shape) == 1:
        with pytest.raises(CalibrationValueError, match=r"'gaussian' for outputs of shape \(5"):
            form_of(output, batch, "categorical")
    with pytest.raises(CalibrationValueError, match="'categorical' or 'gaussian'; got 'poisson'"):
        form_of(output, batch, "poisson")


def test_rows_and_masks():
    x = random(2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    kept = torch.stack([x[0, 0], x[0, 1], x[1, 0]])
    for form in (Form(2), Form(None)):
        assert torch.equal(form.rows(x, mask), kept)
    assert form.rows(x, None).shape == (2, 12)
    assert torch.equal(Form(2).rows(x, None), x.reshape(6, 4))
    assert torch.equal(Form(2).rows(x, mask[:1]), x.reshape(6, 4))
    image = random(2, 5, 3, 4)
    assert torch.equal(Form(1).rows(image, None)[3 * 4 + 4 + 2], image[1, :, 1, 2])
    # Start positions of an answer: the classes are the positions, padding or not.
    assert form.rows(x[..., 0], mask).shape == (3, 1)
    assert Form(1).rows(x[..., 0], mask).shape == (2, 3)


def classifier(inputs=6, classes=4):
    return seeded(lambda: nn.Linear(inputs, classes)).double()


def changed(model, by=0.1):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for number, parameter in enumerate(other.parameters()):
            parameter.add_(random(*parameter.shape, seed=number).to(parameter), alpha=by)
    return other


def kl(p, q):
    return (p * (p.log() - q.log())).sum(-1)


@pytest.mark.parametrize("probabilities", [False, True])
def test_divergence_of_distributions(probabilities):
    one = nn.Sequential(classifier(), *[nn.Softmax(-1)] * probabilities)
    other = changed(one)
    x = random(10, 6)
    expected = kl(one[:1](x).softmax(-1), other[:1](x).softmax(-1)).mean().item()
    data = batches("Test", x, one, batch_size=4)
    assert divergence(one, other, data) == pytest.approx(expected, rel=1e-9)
    assert divergence(one, one, data) == 0
    data = batches("Test", [x[:7], x[7:]], one)
    assert divergence(one, other, data) == pytest.approx(expected, rel=1e-9)
    assert divergence(one, other, data, likelihood="gaussian") != pytest.approx(expected, rel=0.1)


def test_divergence_of_values():
    one, other = classifier(classes=6), changed(classifier(classes=6))
    x = random(10, 6)
    expected = ((one(x) - other(x)).norm() / one(x).norm()).item() ** 2
    data = batches("Test", [x[:9], x[9:]], one)
    assert divergence(one, other, data) == pytest.approx(expected, rel=1e-9)
    with torch.no_grad():
        for p in one.parameters():
            p.zero_()
    assert divergence(one, one, data) == 0
    assert divergence(one, other, data) == inf


def test_small_divergences_survive_float32():
    one = classifier().float()
    other = changed(one, 1e-4)
    x = random(64, 6)
    exact = kl(one.double()(x).softmax(-1), other.double()(x).softmax(-1)).mean().item()
    one, other = one.float(), other.float()
    found = divergence(one, other, batches("Test", x, one))
    assert exact < 1e-7
    assert found == pytest.approx(exact, rel=1e-2)


def test_masked_positions_do_not_count():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = classifier()

        def forward(self, x, attention_mask):
            return self.layer(x)

    one, other = Tagger(), changed(Tagger())
    x = random(3, 5, 6)
    mask = torch.arange(5) < torch.tensor([[5], [2], [1]])
    p, q = one.layer(x).softmax(-1), other.layer(x).softmax(-1)
    data = batches("Test", [{"x": x, "attention_mask": mask.long()}], one)
    assert divergence(one, other, data) == pytest.approx(kl(p, q)[mask].mean().item())


def test_a_loader_that_shuffles_by_itself():
    """Both networks meet the very same batches."""
    one, other = classifier(), changed(classifier())
    x = random(30, 6)
    expected = divergence(one, other, batches("Test", x, one))
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(TensorDataset(x), batch_size=4, shuffle=True, generator=generator)
    assert divergence(one, other, batches("Test", loader, one)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("classes", [4, 6])
@pytest.mark.parametrize("bad", [float("nan"), inf])
def test_values_that_are_not_finite(classes, bad):
    one = classifier(classes=classes)
    other = copy.deepcopy(one)
    with torch.no_grad():
        other.bias[0] = bad
    x = random(10, 6)
    assert divergence(one, other, batches("Test", x, one)) == inf
    with pytest.raises(NonFiniteOutputError, match=r"batch 1 \(counted .*of Test have NaN"):
        divergence(Sudden(bad), Sudden(0.0), batches("Test", [x, x + 1e4], one))


class Sudden(nn.Module):
    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def forward(self, x):
        return torch.where(x[:, :3] > 1e3, self.bad, x[:, :3])


def test_classes_that_are_ruled_out():
    one, other = classifier(), changed(classifier())
    with torch.no_grad():
        one.bias[1] = other.bias[1] = -inf
    x = random(10, 6)
    rest = [0, 2, 3]
    p, q = one(x)[:, rest].softmax(-1), other(x)[:, rest].softmax(-1)
    data = batches("Test", x, one)
    assert divergence(one, other, data) == pytest.approx(kl(p, q).mean().item())
    with torch.no_grad():
        other.bias[2] = -inf  # which the original does not rule out
    assert divergence(one, other, data) == inf
    with torch.no_grad():
        other.bias.fill_(-inf)
    assert divergence(one, other, data) == inf


def test_other_shapes_and_failing_forwards():
    one = classifier()
    data = batches("Test", random(10, 6), one)
    with pytest.raises(OutputShapeError, match=r"batch 0 .* \(10, 3\) as .* original \(10, 4\)"):
        divergence(one, classifier(classes=3), data)
    with pytest.raises(ForwardError, match=r"batch 0 .* of Test, with inputs .*float64 \(10, 6\)"):
        divergence(one, classifier(inputs=5), data)


def test_models_and_random_numbers_stay_as_they_are(capsys):
    one = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 4)).train()
    other = changed(one)
    before = snapshot(one), snapshot(other)
    state = torch.get_rng_state()
    data = batches("Test", DataLoader(random(10, 6), batch_size=5, shuffle=True), one)
    found = divergence(one, other, data, verbose=True)
    check_untouched("divergence", one, before[0])
    check_untouched("divergence", other, before[1])
    again = divergence(one.eval(), other.eval(), data)
    assert again == pytest.approx(found)
    assert torch.equal(state, torch.get_rng_state())
    assert "compare" in capsys.readouterr().err
