"""Which channels go together, which stay and why, and what the model without them computes."""

from __future__ import annotations

import copy

import pytest
import torch
from channel_cases import CASES, Blocks, case, widths
from skcompress_torch_pruning import ChannelPruner
from torch import nn

from skcompress import count_flops, count_parameters

PLAIN = {"refit": False, "recalibrate_norm": False}


def unread(model, plan):
    """Copy a model with zeros where it would read what goes, by hand."""
    result = copy.deepcopy(model)
    for name, sides in plan.layers.items():
        layer = result.get_submodule(name)
        gone = list(sides.gone_inputs)
        if not gone:
            continue
        weight = layer.weight.data
        if getattr(layer, "transposed", False):
            weight[gone] = 0
        elif getattr(layer, "groups", 1) > 1:
            per_group, out = weight.shape[1], len(weight) // layer.groups
            for c in gone:
                weight[c // per_group * out : (c // per_group + 1) * out, c % per_group] = 0
        else:
            weight[:, gone] = 0
    return result


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("criterion", ["l2", "random"])
def test_removing_channels_is_not_reading_them(name, criterion):
    model, x = case(name)
    pruner = ChannelPruner(0.35, criterion, min_kept=1, **PLAIN)
    small = pruner.fit_transform(model, x)
    assert count_parameters(small) <= 0.65 * count_parameters(model)
    with torch.no_grad():
        expected, found = unread(model, pruner.plan_)(x), small(x)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert not torch.allclose(found, model(x), rtol=1e-2)


@pytest.mark.parametrize("name", CASES)
def test_what_is_left_is_what_the_report_says(name):
    model, x = case(name)
    pruner = ChannelPruner(0.3, "l1", min_kept=1, **PLAIN).fit(model, x)
    small = pruner.transform(model)
    assert pruner.n_parameters_in_ == count_parameters(model)
    assert pruner.n_parameters_out_ == count_parameters(small)
    assert sum(group.before for group in pruner.plan_) == count_parameters(model)
    assert sum(group.after for group in pruner.plan_) == count_parameters(small)
    assert (pruner.n_flops_in_, pruner.n_flops_out_) == (
        count_flops(model, x),
        count_flops(small, x),
    )
    for group in pruner.plan_:
        for layer in group.layers:
            if group.reason is None:
                assert widths(small)[layer][1] == len(group.kept)
        went = len(group.kept) < group.channels
        assert went == (group.reason is None)
    assert str(pruner.report_).count("\n") > len(pruner.plan_)


def kept(name, ratio=0.35, **settings):
    model, x = case(name)
    pruner = ChannelPruner(ratio, "l2", min_kept=1, **{**PLAIN, **settings}).fit(model, x)
    return pruner.plan_, widths(pruner.transform(model))


def test_residual_channels_go_everywhere_at_once():
    plan, found = kept("residual")
    assert set(plan["stem"].layers) == {"stem", "inner.0.3", "inner.1.3"}
    stream = len(plan["stem"].kept)
    assert stream < 12
    assert found["inner.0.0"][0] == found["inner.1.0"][0] == found["head"][0] == stream
    sides = [plan.layers[n].gone_outputs for n in ("stem", "inner.0.3", "inner.1.4")]
    assert sides[0] == sides[1] == sides[2] != ()


def test_concatenated_channels_are_found_behind_the_concatenation():
    plan, _ = kept("concatenation")
    one, two = plan.layers["one"].gone_outputs, plan.layers["two"].gone_outputs
    assert plan.layers["three"].gone_inputs == tuple(sorted([*one, *(8 + c for c in two)]))


def test_depthwise_and_gates_follow_and_groups_lose_the_same_place():
    plan, found = kept("depthwise, grouped, gated", 0.4)
    n = found["expand"][1]
    assert n < 16
    assert found["depthwise"] == (n, n)
    assert found["excite"][1] == found["squeeze"][0] == n
    gone = plan.layers["grouped"].gone_inputs
    assert len(gone) % 4 == 0
    assert {c % 3 for c in gone} == {c % 3 for c in gone if c < 3}


def test_whole_heads_go():
    model, x = case("attention")
    plan = ChannelPruner(0.3, "l2", layers="attention", min_kept=1, **PLAIN).fit(model, x).plan_
    small = ChannelPruner(0.3, "l2", layers="attention", min_kept=1, **PLAIN).fit_transform(
        model, x
    )
    for block in small.attention:
        assert block.query.out_features == block.out.in_features == 6 * block.num_heads
    assert {module for module, *_ in plan.resized} <= {"attention.0", "attention.1"}
    assert plan.resized
    gone = plan.layers[f"{plan.resized[0][0]}.out"].gone_inputs
    assert all(c // 6 * 6 + k in gone for c in gone for k in range(6))


def test_heads_of_an_attribute_with_another_name_are_given():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = Blocks(attribute="n_parts").eval(), torch.randn(8, 7, 24)
    plain = ChannelPruner(0.2, "l2", **PLAIN).fit(model, x)
    assert "the model does not run with fewer" in plain.plan_["attention.0.query"].reason
    named = ChannelPruner(
        0.3, "l2", num_heads={"attention.*": 4}, layers="attention", min_kept=1, **PLAIN
    )
    small = named.fit_transform(model, x)
    assert small.attention[0].n_parts < 4
    assert small(x).shape == (8, 5)


def test_reasons_for_what_stays():
    reasons = {}
    for name in ("attention", "padded shortcut", "residual"):
        model, x = case(name)
        plan = ChannelPruner(0.1, "l2", **PLAIN).fit(model, x).plan_
        reasons[name] = {group.name: group.reason or "" for group in plan}
    assert "outputs of the model" in reasons["residual"]["head"]
    shifted = "torch-pruning does not tell which of them are channels of 'stem'"
    assert reasons["padded shortcut"]["two"] == shifted
    assert any("LayerNorm" in reason for reason in reasons["attention"].values())


def test_a_graph_that_is_wrong_is_found_out():
    """Channels that a forward turns round: torch-pruning takes the order to stay."""

    class Flipped(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = nn.Linear(6, 20), nn.Linear(20, 20), nn.Linear(20, 3)

        def forward(self, x):
            return self.three(torch.relu(self.two(torch.relu(self.one(x)).flip(1))))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Flipped()
    pruner = ChannelPruner(0.2, "l2", **PLAIN).fit(model, torch.randn(8, 6))
    reason = "the forward uses them in ways that the graph does not show"
    assert pruner.plan_["one"].reason == reason
    assert pruner.plan_["two"].reason is None


def test_tied_and_computed_weights_stay():
    tied = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    tied[2].weight = tied[0].weight
    wide = nn.Sequential(tied, nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    wide[0][4] = normed
    pruner = ChannelPruner(0.3, "l2", **PLAIN).fit(wide, torch.randn(6, 8))
    small = pruner.transform(wide)
    assert small[0][0].weight is small[0][2].weight
    assert "shares its parameters" in pruner.plan_["0.0"].reason
    assert small[1].out_features < 64
    assert small(torch.randn(2, 8)).shape == (2, 3)


def test_layers_and_exclude():
    model, x = case("residual")
    wanted = ChannelPruner(0.2, "l2", layers="inner.0.0", **PLAIN).fit(model, x).plan_
    assert [group.name for group in wanted if group.reason is None] == ["inner.0.0"]
    assert wanted["inner.1.0"].reason == "inner.1.0 is not among layers"
    for pattern in ("inner.0.3", "inner.0.3.weight", "norm"):
        spared = ChannelPruner(0.2, "l2", exclude=pattern, **PLAIN).fit(model, x).plan_
        name = pattern.removesuffix(".weight")
        assert spared["stem"].reason == f"{name} is in exclude"
