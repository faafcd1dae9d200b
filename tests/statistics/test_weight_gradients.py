"""Gradients and relevance of single weights against autograd and against sums by hand."""

from __future__ import annotations

import pytest
import torch
from models import LAYERS, layer, random, seeded
from torch import nn
from torch.nn.functional import log_softmax

from skcompress.network.batches import batches
from skcompress.network.weighting import weighted
from skcompress.network.weights import select
from skcompress.statistics.weight_gradients import weight_gradients
from skcompress.testing import check_untouched, snapshot


def network():
    return seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).double())


def gradients(model, data, what, class_weight=None, **settings):
    data = weighted(batches("Test", data, model), class_weight)
    return dict(weight_gradients(model, select(model).sites, data, what, **settings))


def test_gradient_is_that_of_the_most_probable_class():
    model, x = network(), random(100, 6)
    labels = model(x).argmax(1)
    loss = log_softmax(model(x), 1).gather(1, labels[:, None]).mean()
    expected = torch.autograd.grad(loss, [model[0].weight, model[2].weight])
    found = gradients(model, x, "gradient")
    for name, gradient in zip(("0", "2"), expected, strict=True):
        torch.testing.assert_close(found[name][0], gradient)


def test_classes_count_by_their_weight_and_labels_of_the_data_say_which():
    model, x = network(), random(60, 6)
    labels = torch.arange(60) % 4
    weights = {0: 0.0, 1: 0.0, 2: 5.0, 3: 5.0}
    data = [(x, labels)]
    found = gradients(model, data, "gradient", weights)
    kept = labels >= 2
    only = gradients(model, x[kept], "gradient")
    torch.testing.assert_close(found["0"], only["0"])


def test_fisher_is_the_mean_square_for_labels_drawn_by_the_network():
    model, x = network(), random(40, 6)
    exact = torch.zeros_like(model[2].weight)
    for row in x:
        logits = model(row)
        for label, probability in enumerate(logits.softmax(0)):
            (g,) = torch.autograd.grad(
                logits.log_softmax(0)[label], model[2].weight, retain_graph=True
            )
            exact += probability.detach() * g.square() / len(x)
    singles = [x[i : i + 1] for i in range(40)]
    found = [gradients(model, singles, "fisher", seed=s)["2"][0] for s in range(20)]
    mean = torch.stack(found).mean(0)
    assert float((mean - exact).norm() / exact.norm()) < 0.1
    pooled = [gradients(model, [x], "fisher", seed=s)["2"][0] for s in range(400)]
    assert float((torch.stack(pooled).mean(0) - exact).norm() / exact.norm()) < 0.15


@pytest.mark.parametrize("what", ["gradient", "fisher", "relevance", "positive_relevance"])
@pytest.mark.parametrize("name", [n for n in LAYERS if n not in ("experts", "attention")])
def test_every_kind_of_layer_has_them_in_the_shape_of_its_weights(name, what):
    model, args = layer(name)
    head = nn.Sequential(model) if len(args) == 1 else model
    state = snapshot(head)
    found = gradients(head, [args[0]], what)
    for site in select(head).sites:
        assert found[site.name].shape == site.slot.shape
        assert found[site.name].any()
    check_untouched(f"{what} of {name}", head, state)


def test_relevance_of_a_layer_adds_up_to_what_it_explains():
    """Without biases, and with outputs far from zero, nothing is lost on the way."""
    model = nn.Sequential(
        nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(random(*parameter.shape, seed=3).abs() + 0.5)
    x = random(50, 6).abs() + 0.1
    explained = model(x).max(1).values.mean().detach()
    for what in ("relevance", "positive_relevance"):
        found = gradients(model, x, what)
        for name in ("0", "2"):
            assert float(found[name].sum()) == pytest.approx(float(explained), rel=0.15)
    exact = gradients(model, x, "positive_relevance")
    assert float(exact["2"].sum()) == pytest.approx(float(explained), rel=1e-9)


def test_positive_relevance_has_nothing_for_negative_weights_after_a_relu():
    model, x = network(), random(50, 6)
    found = gradients(model, x, "positive_relevance")["2"][0]
    assert not found[model[2].weight < 0].any()
    assert gradients(model, x, "relevance")["2"][0][model[2].weight < 0].any()


def test_frozen_parametrized_and_inference_mode_weights_are_differentiated_too():
    model = network()
    model.requires_grad_(False)
    nn.utils.parametrizations.weight_norm(model[0])
    x = random(20, 6)
    with torch.inference_mode():
        found = gradients(model, x, "gradient")
    assert found["0"].any()
    assert found["2"].any()
    assert model[0].parametrizations.weight.original1.grad is None
