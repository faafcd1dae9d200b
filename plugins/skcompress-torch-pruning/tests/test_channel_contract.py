"""The contract of compressors, the budget, and what is refused."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from channel_cases import CASES, Residual, case, widths
from skcompress_torch_pruning import ChannelPlan, ChannelPruner
from skcompress_torch_pruning.budget import flop_costs
from skcompress_torch_pruning.errors import NoInputsError, RatioError, UntraceableError
from skcompress_torch_pruning.tracing import trace
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from torch import nn

import skcompress
from skcompress import SVDCompressor, count_flops, count_parameters, errors, registry
from skcompress.building import batches, select
from skcompress.testing import check_compressor, check_untouched, snapshot

PLAIN = {"refit": False, "recalibrate_norm": False}


def test_entry_point_and_public_name_are_the_class():
    assert registry.resolve("compressors", "channel") is ChannelPruner
    assert skcompress.ChannelPruner is ChannelPruner


@pytest.mark.parametrize("criterion", ["l1", "taylor", "lrp", "merge"])
def test_keeps_the_laws_of_compressors(criterion):
    check_compressor(ChannelPruner(0.2, criterion, min_kept=1), with_data=True)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("cost", ["parameters", "flops", "channels"])
def test_the_budget_is_met_by_as_little_as_can_be(name, cost):
    model, x = case(name)
    pruner = ChannelPruner(0.25, "l2", cost=cost, min_kept=1, **PLAIN)
    small = pruner.fit_transform(model, x)
    if cost == "parameters":
        share = 1 - count_parameters(small) / count_parameters(model)
    elif cost == "flops":
        share = 1 - count_flops(small, x) / count_flops(model, x)
    else:
        open_ = [g for g in pruner.plan_ if g.layers and not _stays(g)]
        share = 1 - sum(len(g.kept) for g in open_) / sum(g.channels for g in open_)
    # The least that can go is a lot of these small networks: four channels of the grouped one.
    most = 0.6 if name.startswith("depthwise") else 0.4
    assert 0.25 - 1e-9 <= share < most


def _stays(group):
    return group.reason is not None and "best use" not in group.reason


def test_flops_of_every_kind_of_layer_count():
    model, x = case("depthwise, grouped, gated")
    data = batches("T", x, model)
    groups = trace(model, data, select(model)).groups
    costs, total = flop_costs(model, groups, next(iter(data)))
    wide = torch.zeros(16, 16, 8, 8)
    assert costs["depthwise"].whole == count_flops(model.depthwise, wide) > 0
    assert costs["project"].whole == count_flops(model.project, wide)
    assert total == count_flops(model, x)
    assert sum(cost.whole for cost in costs.values()) == pytest.approx(total)


def test_one_channel_less_would_not_do():
    model, x = case("residual")
    pruner = ChannelPruner(0.3, "l2", layers="inner.*.0", **PLAIN).fit(model, x)
    at = pruner.n_parameters_out_
    allowed = 0.7 * pruner.n_parameters_in_
    per_channel = 12 * 9 * 2 + 2
    assert at <= allowed < at + per_channel


def test_ratio_zero_is_a_copy_and_more_is_smaller():
    model, x = case("residual")
    same = ChannelPruner(0.0, "l2", **PLAIN).fit_transform(model, x)
    assert torch.equal(same(x), model(x))
    sizes = [
        ChannelPruner(ratio, "l2", min_kept=1, **PLAIN).fit(model, x).n_parameters_out_
        for ratio in (0.1, 0.3, 0.5, 0.7, 0.9)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 5


def test_rounding_and_what_is_kept_at_least():
    model, x = case("residual")
    rounded = ChannelPruner(0.3, "l2", round_to=4, **PLAIN).fit(model, x)
    for group in rounded.plan_:
        assert len(group.kept) % 4 == 0 or group.reason is not None
    least = ChannelPruner(0.3, "l2", min_kept=7, **PLAIN).fit(model, x)
    assert min(len(g.kept) for g in least.plan_ if g.reason is None) >= 7
    even = ChannelPruner(0.5, "l1", allocation="uniform", cost="channels", **PLAIN).fit(model, x)
    assert {len(g.kept) / g.channels for g in even.plan_ if g.reason is None} == {0.5}


def test_a_ratio_that_cannot_be_reached_says_what_can():
    model, x = case("attention")
    with pytest.raises(
        RatioError, match=r"of the model's parameters can be removed at most"
    ) as info:
        ChannelPruner(0.9, "l2").fit(model, x)
    largest = info.value.largest
    assert 0.3 < largest < 0.9
    ChannelPruner(largest, "l2").fit(model, x)


@pytest.mark.parametrize(
    "settings",
    [{"ratio": 1.0}, {"ratio": -0.1}, {"ratio": "half"}, {"ratio": True}, {"criterion": 3},
     {"cost": "bytes"}, {"min_kept": 0}, {"round_to": 0}, {"class_weight": "even"}],
)  # fmt: skip
def test_bad_settings_are_named(settings):
    model, x = case("residual")
    (name,) = settings
    with pytest.raises(ValueError, match=f"The '{name}' parameter of ChannelPruner must be"):
        ChannelPruner(**settings).fit(model, x)


def test_what_cannot_be_done_says_why():
    model, x = case("residual")
    with pytest.raises(NoInputsError, match=r"pass inputs as the second argument"):
        ChannelPruner().fit(model)
    with pytest.raises(errors.UnknownNameError, match="no channel_criteria is named 'l3'; did you"):
        ChannelPruner(criterion="l3").fit(model, x)
    with pytest.raises(errors.SelectionError, match="exclude='stemm' matches no layer"):
        ChannelPruner(exclude="stemm").fit(model, x)
    with pytest.raises(errors.NoLayerError, match="outputs of the model"):
        ChannelPruner().fit(nn.Linear(4, 4), torch.randn(8, 4))
    with pytest.raises(errors.MetaWeightError, match=r"stem\.weight"):
        ChannelPruner().fit(copy.deepcopy(model).to("meta"), x)
    with pytest.raises(errors.InverseError, match="has no inverse_transform"):
        ChannelPruner().inverse_transform(model)
    with pytest.raises(errors.SampleWeightError, match="needs labels"):
        ChannelPruner(class_weight="balanced").fit(model, x)

    class Closed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        @torch.no_grad()
        def forward(self, x):
            return self.inner(x)

    with pytest.raises(UntraceableError, match="no gradient comes back from its outputs"):
        ChannelPruner().fit(Closed(), x)


@pytest.mark.parametrize("criterion", ["l2", "taylor", "lrp", "merge"])
def test_model_hooks_and_randomness_are_untouched_even_on_errors(criterion):
    model, x = case("residual")
    model.train()
    model.stem.register_forward_hook(lambda *_: None)
    before, state = snapshot(model), torch.random.get_rng_state()
    ChannelPruner(0.3, criterion).fit_transform(model, x)
    check_untouched("fit", model, before)
    with pytest.raises(errors.ForwardError, match="could not be run on batch 0"):
        ChannelPruner(0.3, criterion).fit(model, x[:, :2])
    with pytest.raises(RatioError):
        ChannelPruner(0.99, criterion).fit(model, x)
    check_untouched("an error", model, before)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(p.grad is None for p in model.parameters())


def test_result_is_plain_and_remembers_what_is_trained():
    model, x = case("residual")
    model.stem.weight.requires_grad_(False)
    small = ChannelPruner(0.3).fit_transform(model, x)
    assert {type(m) for m in small.modules()} <= {type(m) for m in model.modules()}
    assert not small.stem.weight.requires_grad
    assert small.head.weight.requires_grad
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert torch.equal(other(x), small(x))
    other.load_state_dict(small.state_dict())
    loss = small.train()(x).square().mean()
    loss.backward()
    assert small.head.weight.grad is not None


def test_later_checkpoints_and_models_without_values_have_the_same_plan():
    model, x = case("residual")
    pruner = ChannelPruner(0.3, "l2", **PLAIN).fit(model, x)
    later = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in later.parameters():
            parameter.mul_(1.1)
    small = pruner.transform(later)
    kept = list(pruner.plan_["stem"].kept)
    assert torch.equal(small.stem.weight, later.stem.weight[kept])
    bare = pruner.transform(copy.deepcopy(model).to("meta"))
    assert widths(bare) == widths(small)
    assert all(p.is_meta for p in bare.parameters())
    bare.to_empty(device="cpu").load_state_dict(small.state_dict())
    assert torch.equal(bare.eval()(x), small(x))


def test_what_was_fitted_with_data_is_good_for_those_weights_only():
    model, x = case("residual")
    pruner = ChannelPruner(0.3, "merge").fit(model, x)
    assert torch.equal(pruner.transform(model)(x), pruner.transform(copy.deepcopy(model))(x))
    later = copy.deepcopy(model)
    later.inner[0][3].weight.data *= 1.1
    with pytest.raises(errors.CalibratedWeightError, match=r"inner\.0\.3"):
        pruner.transform(later)
    assert pruner.transform(copy.deepcopy(model).to("meta")).stem.weight.is_meta


def test_other_architectures_are_refused():
    model, x = case("residual")
    pruner = ChannelPruner(0.3, "l2", **PLAIN).fit(model, x)
    other = Residual()
    other.inner[1][0] = nn.Conv2d(12, 18, 3, padding=1)
    with pytest.raises(errors.PlanMismatchError, match=r"inner\.1\.0.*12 to 18.*12 to 16"):
        pruner.transform(other)
    with pytest.raises(errors.PlanMismatchError, match="is missing"):
        pruner.transform(nn.Linear(3, 3))
    heads, tokens = case("attention")
    pruner = ChannelPruner(0.3, "l2", layers="attention", min_kept=1, **PLAIN).fit(heads, tokens)
    for block in heads.attention:
        block.num_heads = 6
    with pytest.raises(errors.PlanMismatchError, match="num_heads=6"):
        pruner.transform(heads)


def test_plan_travels_through_json_and_report_through_pandas():
    model, x = case("attention")
    pruner = ChannelPruner(0.3, "l2", min_kept=1, **PLAIN).fit(model, x)
    back = ChannelPlan.from_dict(json.loads(json.dumps(pruner.plan_.to_dict())))
    assert back == pruner.plan_
    table = pruner.report_.to_pandas()
    assert len(table) == len(pruner.plan_)
    assert table["after"].sum() == pruner.n_parameters_out_
    assert "<table>" in pruner.report_._repr_html_()


def test_in_a_pipeline_before_low_rank():
    model, x = case("residual")
    x = x.repeat(4, 1, 1, 1)
    both = make_pipeline(ChannelPruner(0.3, "l2"), SVDCompressor(rank=0.7))
    small = clone(both).fit_transform(model, x)
    assert count_parameters(small) <= 0.49 * count_parameters(model)
    assert small(x).shape == (64, 5)
    factorized = SVDCompressor(rank=0.7).fit_transform(model, x)
    with pytest.raises(errors.NoLayerError, match="already factorised"):
        ChannelPruner(0.2, "l2").fit(factorized, x)


def test_half_precision_and_dict_batches():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = case("residual")[0]

        def forward(self, pixels, scale=1.0):
            return {"logits": self.net(pixels) * scale}

    model, x = Named().eval(), case("residual")[1]
    data = [{"pixels": x, "labels": torch.arange(16) % 5}]
    small = ChannelPruner(0.3, "taylor").fit_transform(model, data)
    assert small(x)["logits"].shape == (16, 5)
    half = copy.deepcopy(case("residual")[0]).to(torch.bfloat16)
    found = ChannelPruner(0.3, "merge").fit_transform(half, x)
    assert {p.dtype for p in found.parameters()} == {torch.bfloat16}
