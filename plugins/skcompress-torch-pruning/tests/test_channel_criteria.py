"""What each criterion says of channels whose worth is known."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch_pruning as tp
from channel_cases import Residual, case
from skcompress_torch_pruning import ChannelPruner
from skcompress_torch_pruning.errors import LabelError
from skcompress_torch_pruning.gates import fisher, relevance
from skcompress_torch_pruning.merging import Eliminated, elimination
from skcompress_torch_pruning.tracing import trace
from torch import nn

from skcompress import registry
from skcompress.building import batches, select
from skcompress.protocols import ChannelCriterion, Metric
from skcompress.testing import check_channel_criterion

PLAIN = {"refit": False, "recalibrate_norm": False}
EVERY = ["l1", "l2", "batch_norm", "taylor", "lrp", "merge"]  # but "random"


def chain(bias: bool = True) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(3, 10, 3, padding=1, bias=bias), nn.BatchNorm2d(10), nn.ReLU(),
            nn.Conv2d(10, 8, 3, padding=1, bias=bias), nn.ReLU(), nn.Conv2d(8, 4, 1),
        ).eval()  # fmt: skip


def went(plan, name="0"):
    return set(range(plan[name].channels)) - set(plan[name].kept)


@pytest.mark.parametrize("criterion", EVERY)
def test_channels_that_do_nothing_go_first(criterion, generator):
    model, x = chain(), torch.randn(80, 3, 6, 6, generator=generator)
    dead = {1, 4, 7}
    for c in dead:
        model[0].weight.data[c] = 0
        model[0].bias.data[c] = 0
        model[1].weight.data[c] = 1e-4
        model[1].bias.data[c] = 0
        model[3].weight.data[:, c] *= 1e-3
    labels = torch.randint(4, (80,), generator=generator)
    head = nn.Sequential(model, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    data = [(part, label) for part, label in zip(x.split(40), labels.split(40), strict=True)]
    pruner = ChannelPruner(0.3, criterion, layers="0.0", cost="channels", **PLAIN).fit(head, data)
    assert went(pruner.plan_, "0.0") == dead


@pytest.mark.parametrize(("criterion", "power"), [("l1", 1), ("l2", 2)])
def test_norms_are_those_of_all_weights_of_a_channel(criterion, power, generator):
    model, x = chain(), torch.randn(4, 3, 6, 6, generator=generator)
    given = model[0].weight.abs().pow(power).sum((1, 2, 3))
    read = model[3].weight.abs().pow(power).sum((0, 2, 3))
    pruner = ChannelPruner(0.5, criterion, layers="0", cost="channels", **PLAIN).fit(model, x)
    assert went(pruner.plan_) == set((given + read).argsort()[:5].tolist())


def test_scales_of_normalisations_decide(generator):
    model, x = chain(), torch.randn(4, 3, 6, 6, generator=generator)
    model[1].weight.data = torch.tensor([5.0, -0.1, 3, 0.2, 7, 6, 0.3, 4, -0.4, 8])
    pruner = ChannelPruner(0.4, "batch_norm", layers="0", cost="channels", **PLAIN).fit(model, x)
    assert went(pruner.plan_) == {1, 3, 6, 8}
    rest = ChannelPruner(0.1, "batch_norm", **PLAIN).fit(model, x).plan_["3"]
    assert "finds nothing to go by" in rest.reason


def test_taylor_is_the_derivative_by_switching_a_channel_off(generator):
    model, x = case("residual")
    labels = torch.randint(5, (16,), generator=generator)
    data = batches("T", [(x, labels)], model)
    groups = trace(model, data, select(model)).groups
    (stem,) = (g for g in groups if g.name == "stem")
    found = fisher(model, [stem], data, 0)["stem"]

    def likelihood(factor: float, channel: int) -> torch.Tensor:
        changed = copy.deepcopy(model).double()
        for member in stem.readers:
            changed.get_submodule(member.layer).weight.data[:, channel] *= factor
        return changed(x.double()).log_softmax(1)[torch.arange(16), labels]

    step = 1e-5
    for channel in (0, 3, 11):
        slope = (likelihood(1 + step, channel) - likelihood(1 - step, channel)) / (2 * step)
        assert float(found[channel]) == pytest.approx(
            slope.detach().square().mean().item(), rel=1e-3
        )


def test_relevance_is_conserved_where_inputs_have_both_signs(generator):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 12, bias=False), nn.Linear(12, 4, bias=False))
    data = batches("T", torch.randn(200, 6, generator=generator), model)
    group = trace(model, data, select(model)).groups[0]
    output = model(data.data).max(1).values
    # Shares of a positive output are positive, and none is lost.
    data = replace(data, data=data.data[output > 0.1])
    found = relevance(model, [group], data, {})[group.name]
    assert (found >= 0).all()
    assert float(found.sum()) == pytest.approx(output[output > 0.1].mean().item(), rel=1e-4)


def test_relevance_is_conserved_from_layer_to_layer(generator):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(6, 12, bias=False), nn.ReLU(), nn.Linear(12, 9, bias=False), nn.ReLU(),
            nn.Linear(9, 4, bias=False),
        )  # fmt: skip
    # All contributions positive: nothing but sharing out is left.
    for parameter in model.parameters():
        parameter.data.abs_()
    x = torch.rand(20, 6, generator=generator)
    data = batches("T", x, model)
    found = relevance(model, trace(model, data, select(model)).groups[:2], data, {})
    output = model(x).max(1).values.mean().item()
    for scores in found.values():
        assert (scores >= 0).all()
        assert float(scores.sum()) == pytest.approx(output, rel=1e-4)


def test_cost_of_a_channel_is_the_least_squares_error_without_it(generator):
    x = torch.randn(400, 12, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(12, 12, generator=generator, dtype=torch.float64)
    weight = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    columns = [torch.tensor([2 * u, 2 * u + 1]) for u in range(6)]
    gram = x.mT @ x / len(x)
    goal = x @ weight.mT
    energy = float(goal.square().sum()) / len(x)

    def error(gone: list[int]) -> float:
        kept = [c for c in range(12) if c // 2 not in gone]
        fitted = torch.linalg.lstsq(x[:, kept], goal).solution
        return float((x[:, kept] @ fitted - goal).square().sum()) / len(x) / energy

    reading = Eliminated.of(weight, Metric.of_inputs(weight, gram), columns)
    first = reading.costs(range(6))
    assert first == pytest.approx([error([u]) for u in range(6)], rel=1e-5)
    order, scores = elimination([reading], 6)
    assert order[0] == int(np.argmin(first))
    best_next = min(error([order[0], u]) for u in range(6) if u != order[0])
    assert error(order[:2]) == pytest.approx(best_next, rel=1e-9)
    assert (np.diff(scores) >= 0).all()
    assert scores[0] + scores[1] == pytest.approx(error(order[:2]), rel=1e-4)


def test_merging_costs_nothing_where_channels_are_made_of_others(generator):
    """Two channels are mixtures of others before a linear reader: nothing is lost with them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.Conv2d(6, 4, 3, padding=1)).eval()
    model[0].weight.data[4] = 0.5 * model[0].weight.data[0] - model[0].weight.data[1]
    model[0].weight.data[5] = model[0].weight.data[2]
    x = torch.randn(64, 3, 6, 6, generator=generator)
    pruner = ChannelPruner(0.5, "merge", cost="channels", min_kept=1)
    small = pruner.fit_transform(model, x)  # six channels span three dimensions only
    assert small[0].out_channels == 3
    with torch.no_grad():
        expected, found = model(x), small(x)
        dropped = ChannelPruner(0.5, "l2", cost="channels", min_kept=1, refit=False)
        apart = dropped.fit_transform(model, x)(x) - expected
    assert float((found - expected).norm() / expected.norm()) < 0.02
    assert float(apart.norm() / expected.norm()) > 0.3


@pytest.mark.parametrize("criterion", ["l1", "merge", "random"])
def test_refit_brings_outputs_closer(criterion, generator):
    model, x = case("residual")
    x = torch.randn(96, 3, 8, 8, generator=generator)
    apart = {}
    for refit in (False, True, "all"):
        pruner = ChannelPruner(0.3, criterion, refit=refit, recalibrate_norm=False, random_state=0)
        apart[refit] = pruner.fit(model, x).report_.divergence
    assert apart[True] < 0.7 * apart[False]
    assert apart["all"] < 0.7 * apart[False]


def test_statistics_of_normalisations_are_estimated_where_that_helps(generator):
    model, x = case("residual")
    x = torch.randn(96, 3, 8, 8, generator=generator)
    without = ChannelPruner(0.4, "l1", recalibrate_norm=False).fit(model, x)
    auto = ChannelPruner(0.4, "l1").fit(model, x)
    forced = ChannelPruner(0.4, "l1", recalibrate_norm=True)
    small = forced.fit_transform(model, x)
    assert auto.report_.divergence <= min(without.report_.divergence, forced.report_.divergence)
    inputs = []
    small.norm.register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
    small(x)
    assert torch.allclose(small.norm.running_mean, inputs[0].mean((0, 2, 3)), atol=1e-4)
    few = ChannelPruner(0.4, "l1").fit(model, x[:8])
    assert few.report_.divergence == pytest.approx(
        ChannelPruner(0.4, "l1", recalibrate_norm=False).fit(model, x[:8]).report_.divergence
    )


def test_an_importance_of_torch_pruning_will_do(generator):
    model, x = chain(), torch.randn(4, 3, 6, 6, generator=generator)
    theirs = tp.importance.GroupMagnitudeImportance(
        p=2, target_types=[nn.modules.conv._ConvNd, nn.Linear]
    )
    given = ChannelPruner(0.4, theirs, **PLAIN).fit(model, x)
    named = ChannelPruner(0.4, "l2", **PLAIN).fit(model, x)
    assert given.plan_ == named.plan_


class LargestWeight(ChannelCriterion):
    """The largest weight that makes a channel."""

    def scores(self, channels):
        return torch.stack([weight.abs().amax(1) for weight in channels.given]).amax(0)


def test_a_criterion_of_somebody_else(generator):
    check_channel_criterion(LargestWeight())
    model, x = chain(), torch.randn(4, 3, 6, 6, generator=generator)
    pruner = ChannelPruner(0.4, LargestWeight(), layers="0", cost="channels", **PLAIN)
    largest = model[0].weight.abs().amax((1, 2, 3))
    assert went(pruner.fit(model, x).plan_) == set(largest.argsort()[:4].tolist())


def test_a_criterion_of_another_package_is_found_by_name(tmp_path, monkeypatch):
    source = (
        "from skcompress.protocols import ChannelCriterion\n"
        "class Drawn(ChannelCriterion):\n"
        "    needs = ('moments',)\n"
        "    def scores(self, channels):\n"
        "        return -channels.readings[0].weight.abs().sum(0)\n"
    )
    (tmp_path / "somebodys_criteria.py").write_text(source)
    info = tmp_path / "somebodys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys\nVersion: 1.0\n")
    points = "[skcompress.channel_criteria]\nlargest_first = somebodys_criteria:Drawn\n"
    (info / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(tmp_path))
    model, x = chain(), torch.randn(4, 3, 6, 6)
    pruner = ChannelPruner(0.5, "largest_first", layers="3", cost="channels", **PLAIN)
    read = model[5].weight.abs().sum((0, 2, 3))
    assert went(pruner.fit(model, x).plan_, "3") == set(read.argsort()[4:].tolist())
    assert "largest_first" in registry.names("channel_criteria")


@pytest.mark.parametrize("name", [*EVERY, "random"])
def test_criteria_keep_the_laws(name):
    check_channel_criterion(registry.make("channel_criteria", name))


def test_labels_that_are_no_classes_of_the_model_are_refused(generator):
    model, x = case("residual")
    with pytest.raises(LabelError, match=r"labels outside 0\.\.4"):
        ChannelPruner(0.3, "taylor").fit(model, [(x, torch.full((16,), 7))])


@pytest.mark.parametrize("criterion", ["taylor", "lrp", "merge"])
def test_criteria_run_without_labels_and_repeat(criterion):
    model, x = Residual().eval(), torch.randn(12, 3, 8, 8)
    one = ChannelPruner(0.3, criterion, random_state=5).fit(model, x)
    two = ChannelPruner(0.3, criterion, random_state=5).fit(model, x)
    assert one.plan_ == two.plan_
