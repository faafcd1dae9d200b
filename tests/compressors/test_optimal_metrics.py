"""metric="activations" and "fisher": the least error that factors of a rank can have in them."""

from __future__ import annotations

import pytest
import torch
from data_cases import error
from models import seeded
from torch import nn

from skcompress import SVDCompressor
from skcompress.fitting.calibration import DAMPING
from skcompress.network.batches import batches
from skcompress.network.weights import select
from skcompress.statistics.gradients import output_moments

# What `Metric.with_ridge` adds: this share of the mean of the diagonal.
RIDGE = 1e-4

# By name: the network, the layer that is looked at, and data.
NETWORKS = {
    "linear": lambda: (
        nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 24), nn.Tanh(), nn.Linear(24, 6)),
        "2",
        torch.randn(300, 30) @ torch.randn(30, 30) / 5 + 0.5,
    ),
    "without bias": lambda: (
        nn.Sequential(nn.Linear(30, 24, bias=False), nn.Tanh(), nn.Linear(24, 6)),
        "0",
        torch.randn(300, 5) @ torch.randn(5, 30) + 0.1 * torch.randn(300, 30) + 0.5,
    ),
    "convolution": lambda: (
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 20, 3, stride=2), nn.Tanh(),
            nn.Flatten(), nn.Linear(20 * 9, 7),
        ),
        "2",
        torch.randn(80, 3, 8, 8),
    ),
    "grouped": lambda: (
        nn.Sequential(
            nn.Conv2d(4, 24, 3, padding=1, groups=2), nn.Tanh(), nn.Flatten(),
            nn.Linear(24 * 36, 7),
        ),
        "0",
        torch.randn(80, 4, 6, 6),
    ),
}  # fmt: skip
every_network = pytest.mark.parametrize("name", NETWORKS)


def columns(model, name, x):
    """What a layer's groups are applied to, float64 (groups, n, positions)."""
    layer = model.get_submodule(name)
    with torch.no_grad():
        inputs = model[: int(name)](x).double()
    if isinstance(layer, nn.Linear):
        return inputs.mT[None]
    unfolded = nn.functional.unfold(inputs, 3, padding=layer.padding, stride=layer.stride)
    return unfolded.transpose(0, 1).flatten(1).unflatten(0, (layer.groups, -1))


def root(moment, share):
    """R with R^T R = moment and a share of its mean diagonal."""
    damped = moment + share * moment.diagonal().mean() * torch.eye(len(moment)).double()
    return torch.linalg.cholesky(damped).mT


def setting(name):
    """Layer, its weights (groups, out, n), second moments of inputs, and of gradients."""
    model, layer_name, x = seeded(NETWORKS[name])
    model.eval()
    layer = model.get_submodule(layer_name)
    found = columns(model, layer_name, x)
    if layer.bias is not None:
        found = found - found.mean(2, keepdim=True)
    grams = found @ found.mT / found.shape[2]
    weight = layer.weight.detach().double().flatten(1).unflatten(0, (len(found), -1))
    data = batches("test", x, model)
    gradients = dict(output_moments(model, select(model).sites, data))[layer_name].double()
    return model, layer_name, x, weight, grams, gradients


@every_network
@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize("metric", ["activations", "fisher"])
def test_the_error_is_the_least_there_is(metric, rank, name):
    model, layer, x, weight, grams, gradients = setting(name)
    compressor = SVDCompressor(
        {layer: rank}, metric=metric, reconstruction="independent", scheme="output",
        max_positions=None,
    )  # fmt: skip
    small = compressor.fit_transform(model, x)
    assert compressor.ranks_ == {layer: rank}
    ours = small.get_submodule(layer).weight.detach().double().flatten(1)
    ours = ours.unflatten(0, (len(weight), -1))
    lost = least = total = bare = least_bare = total_bare = 0.0
    for w, approximation, gram, gradient in zip(weight, ours, grams, gradients, strict=True):
        left = root(gradient, DAMPING) if metric == "fisher" else torch.eye(len(w)).double()
        right = root(gram, RIDGE)
        values = torch.linalg.svdvals(left @ w @ right.mT)
        lost += float((left @ (approximation - w) @ right.mT).square().sum())
        least += float(values[rank:].square().sum())
        total += float(values.square().sum())
        # The same in the metric as it is measured, without damping and ridge.
        left = root(gradient, 1e-12) if metric == "fisher" else left
        right = root(gram, 1e-12)
        values = torch.linalg.svdvals(left @ w @ right.mT)
        bare += float((left @ (approximation - w) @ right.mT).square().sum())
        least_bare += float(values[rank:].square().sum())
        total_bare += float(values.square().sum())
    assert least * (1 - 1e-6) <= lost <= least * (1 + 1e-4)
    assert compressor.plan_[layer].error ** 2 == pytest.approx(lost / total, rel=1e-3)
    # What they cost: bounded by what they add to the total.
    added = total - total_bare
    assert 0 <= added < 0.05 * total_bare
    assert bare <= least_bare * (1 + 1e-4) + added


@every_network
def test_each_metric_wins_in_its_own(name):
    model, layer, x, weight, grams, gradients = setting(name)
    errors = {}
    for metric in ("activations", "fisher"):
        settings = {"reconstruction": "independent", "scheme": "output"}
        small = SVDCompressor({layer: 3}, metric=metric, **settings).fit_transform(model, x)
        ours = small.get_submodule(layer).weight.detach().double().flatten(1)
        lost = ours.unflatten(0, (len(weight), -1)) - weight
        pairs = list(zip(lost, grams, gradients, strict=True))
        errors[metric] = (
            sum(float((e @ a * e).sum()) for e, a, _ in pairs),
            sum(float((g @ e @ a * e).sum()) for e, a, g in pairs),
        )
    assert errors["activations"][0] < errors["fisher"][0]
    assert errors["fisher"][1] < errors["activations"][1]


def test_an_output_that_nobody_reads_is_given_up():
    # The network's output depends on half of what the layer gives.
    model = seeded(lambda: nn.Sequential(nn.Linear(30, 24), nn.Tanh(), nn.Linear(24, 6)))
    x = seeded(lambda: torch.randn(400, 30))
    with torch.no_grad():
        model[2].weight[:, 12:] = 0
    lost = {}
    for metric in ("activations", "fisher"):
        compressor = SVDCompressor({"0": 8}, metric=metric, reconstruction="independent")
        small = compressor.fit_transform(model, x)
        with torch.no_grad():
            lost[metric] = float((model(x) - small(x)).norm() / model(x).norm())
    assert lost["fisher"] < 0.7 * lost["activations"]


def test_behind_a_normalisation_errors_count_as_they_leave_it():
    # It multiplies what the layer gives by 0.02 to 7: what it makes small may be wrong.
    model = seeded(lambda: nn.Sequential(nn.Linear(30, 24, bias=False), nn.BatchNorm1d(24)))
    x = seeded(lambda: torch.randn(400, 30) @ torch.randn(30, 30) / 5)
    with torch.no_grad():
        model[1].running_var.copy_(torch.logspace(-1, 2, 24).flip(0))
        model[1].weight.copy_(torch.linspace(0.2, 2.0, 24))
    model.eval()
    compressor = SVDCompressor(
        {"0": 6}, metric="activations", reconstruction="independent", recalibrate_norm=False
    )
    small = compressor.fit_transform(model, x)
    with torch.no_grad():
        outputs = model(x).double()
        lost = float((outputs - small(x).double()).square().sum())
    values = torch.linalg.svdvals(outputs - outputs.mean(0))
    assert lost == pytest.approx(float(values[6:].square().sum()), rel=2e-2)


def test_what_the_outputs_hardly_notice_still_counts_a_little():
    # All logits together are worth nothing to a classifier, and most of this weight.
    model = seeded(lambda: nn.Sequential(nn.Linear(20, 10)))
    with torch.no_grad():
        model[0].weight.add_(10 * torch.randn(20, generator=torch.Generator().manual_seed(1)))
    x = seeded(lambda: torch.randn(400, 20))
    small = SVDCompressor(5, metric="fisher", reconstruction="independent").fit_transform(model, x)
    assert error(model, small, x) < 0.2
