"""What pruners do to models: counts, masks, layers of every kind, reports, other models."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from models import LAYERS, layer, random, seeded
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from torch import nn
from torch.nn.utils import parametrizations, prune

from skcompress import MagnitudePruner, Pruner, SVDCompressor, count_nonzeros, registry
from skcompress.compressors.pruning.budget import least_kept
from skcompress.errors import InverseError
from skcompress.network.weights import select
from skcompress.plan import Plan
from skcompress.protocols import Criterion


def network():
    return seeded(lambda: nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, groups=2, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(96, 40), nn.ReLU(), nn.Linear(40, 10),
    ).eval())  # fmt: skip


IMAGES = random(48, 4, 8, 8, dtype=torch.float32)
WEIGHTS = ("0", "3", "7", "9")


def weights(model):
    return [model.get_submodule(name).weight for name in WEIGHTS]


def n_zeros(model):
    return sum(int((w == 0).sum()) for w in weights(model))


TOTAL = sum(w.numel() for w in weights(network()))


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.777, 0.95])
@pytest.mark.parametrize("allocation", ["global", "relative", "uniform", "erk", "sap", "rd"])
def test_the_share_of_zeros_is_hit_to_one_number(sparsity, allocation):
    pruner = Pruner("lamp", sparsity, allocation=allocation)
    sparse = pruner.fit_transform(network(), IMAGES)
    assert n_zeros(sparse) == round(sparsity * TOTAL)
    assert pruner.sparsity_ == pytest.approx(sparsity, abs=1 / TOTAL)
    assert pruner.n_nonzeros_out_ == count_nonzeros(sparse)
    assert pruner.n_nonzeros_in_ == count_nonzeros(network())


def test_global_magnitude_keeps_the_largest_of_all_weights():
    model = network()
    sparse = Pruner("magnitude", 0.6, min_kept=0).fit_transform(model)
    every = torch.cat([w.detach().abs().flatten() for w in weights(model)])
    threshold = every.sort().values[round(0.6 * TOTAL)]
    for before, after in zip(weights(model), weights(sparse), strict=True):
        assert torch.equal(after, torch.where(before.abs() >= threshold, before, 0))


def test_every_weight_keeps_its_least_share():
    model = network()
    with torch.no_grad():
        model[7].weight.mul_(1e-3)
    gone = Pruner("magnitude", 0.7, min_kept=0).fit_transform(model)
    assert not gone[7].weight.any()
    for least, expected in ((0.1, 384), (17, 17)):
        pruner = Pruner("magnitude", 0.7, min_kept=least).fit(model)
        assert pruner.kept_["7"] == expected
        assert n_zeros(pruner.transform(model)) == round(0.7 * TOTAL)


@pytest.mark.parametrize("criterion", ["wanda", "obs", "fisher"])
def test_scores_from_data_are_compared_relative_to_their_own_weight(criterion):
    other = network()
    with torch.no_grad():
        other[7].weight.mul_(2**9)  # a power of two: nothing is rounded
        other[7].bias.mul_(2**9)
        other[9].weight.mul_(2**-9)

    def kept(model, **settings):
        pruner = Pruner(criterion, 0.7, random_state=0, **settings)
        return [int((w != 0).sum()) for w in weights(pruner.fit_transform(model, IMAGES))]

    assert kept(other) == pytest.approx(kept(network()), abs=2)
    assert kept(other) == kept(other, allocation="relative")
    if criterion != "fisher":  # which knows what comes after a layer
        assert kept(other, allocation="global") != kept(network(), allocation="global")


def test_normalisations_are_estimated_anew_where_outputs_come_closer_by_it():
    model, pruner = network(), Pruner("wanda", 0.8)
    images = random(64, 4, 8, 8, dtype=torch.float32)
    model(images)
    with torch.no_grad():
        model[1].running_mean.copy_(model[0](images).mean((0, 2, 3)))
        model[1].running_var.copy_(model[0](images).var((0, 2, 3)))
    left = clone(pruner).set_params(recalibrate_norm=False).fit(model, images)
    pruner.fit(model, images)
    assert pruner.report_.divergence < left.report_.divergence
    sparse = pruner.transform(model)
    expected = sparse[0](images).mean((0, 2, 3))
    assert torch.allclose(sparse[1].running_mean, expected, atol=1e-5)
    for before, after in zip(weights(model), weights(sparse), strict=True):
        assert torch.equal(after, before * (after != 0))  # what stays is what it was
    assert torch.equal(left.transform(model)[1].running_mean, model[1].running_mean)


def test_uniform_keeps_the_same_share_of_each_weight():
    pruner = MagnitudePruner(0.8, scope="layer").fit(network())
    for name, weight in zip(WEIGHTS, weights(network()), strict=True):
        assert pruner.kept_[name] == pytest.approx(0.2 * weight.numel(), abs=1)


@pytest.mark.parametrize("criterion", registry.names("criteria"))
@pytest.mark.parametrize("refit", [False, True])
def test_every_criterion_keeps_to_n_of_m(criterion, refit):
    pruner = Pruner(criterion, pattern="2:4", refit=refit, random_state=0)
    sparse = pruner.fit_transform(network(), IMAGES)
    for name in ("0", "3", "7"):
        blocks = sparse.get_submodule(name).weight.movedim(1, -1).unflatten(-1, (-1, 4))
        assert ((blocks != 0).sum(-1) <= 2).all()
        assert (blocks != 0).sum() == blocks.numel() // 2
    assert "2:4" in pruner.plan_["0"].scheme


def test_widths_that_are_no_multiple_stay_and_the_report_says_so():
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)))
    pruner = Pruner("magnitude", pattern="4:8")
    sparse = pruner.fit_transform(model)
    assert torch.equal(sparse[0].weight, model[0].weight)
    assert pruner.plan_["0"].reason == "its 3 inputs are no multiple of 8, as 4:8 needs"
    assert "its 3 inputs are no multiple of 8" in str(pruner.report_)
    assert int((sparse[2].weight == 0).sum()) == 288


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_every_kind_keep_their_class_and_lose_values(name):
    model, args = layer(name)
    pruner = Pruner("magnitude", 0.5, min_kept=0)
    sparse = pruner.fit_transform(model)
    assert type(sparse) is type(model)
    sites = select(sparse).sites
    zeros = sum(int((site.slot.read() == 0).sum()) for site in sites)
    assert zeros >= round(0.5 * sum(site.slot.read().numel() for site in sites))
    result = sparse(*args)
    first = result[0] if isinstance(result, tuple) else result
    assert first.isfinite().all()


@pytest.mark.parametrize("name", [n for n in LAYERS if n not in ("experts", "attention")])
@pytest.mark.parametrize("criterion", ["wanda", "obs", "taylor", "fisher", "lrp"])
def test_data_reaches_layers_of_every_kind(name, criterion):
    model, args = layer(name)
    pruner = Pruner(criterion, 0.5).fit(nn.Sequential(model), [args[0]])
    assert all(row.reason is None for row in pruner.plan_)


def test_tied_weights_stay_tied_and_count_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(30, 12), nn.Linear(12, 30, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(self.embed(ids))

    model = seeded(Tied)
    for criterion in ("magnitude", "wanda", "obs"):
        pruner = Pruner(criterion, 0.5)
        sparse = pruner.fit_transform(model, [{"ids": torch.arange(30).reshape(5, 6)}])
        assert sparse.head.weight is sparse.embed.weight
        assert int((sparse.head.weight == 0).sum()) == 180
        assert pruner.plan_["embed"].shared_with == ("head",)


def test_computed_weights_become_plain_ones():
    model = network()
    parametrizations.weight_norm(model[7])
    prune.l1_unstructured(model[9], "weight", amount=0.25)
    before = model[7].weight.detach().clone()
    sparse = Pruner("magnitude", 0.5, min_kept=0).fit_transform(model)
    assert type(sparse[7]) is nn.Linear
    assert "weight" in dict(sparse[7].named_parameters())
    kept = sparse[7].weight != 0
    assert torch.equal(sparse[7].weight[kept], before[kept])
    assert "weight" in dict(sparse[9].named_parameters())
    assert sparse(IMAGES).shape == (48, 10)
    assert hasattr(model[9], "weight_orig")


def test_half_precision_frozen_weights_and_modes_are_kept():
    model = network().half().train()
    model[7].weight.requires_grad_(False)
    sparse = Pruner("lamp", 0.5).fit_transform(model)
    assert sparse.training
    assert {p.dtype for p in sparse.parameters()} == {torch.float16}
    assert not sparse[7].weight.requires_grad
    assert n_zeros(sparse) >= round(0.5 * TOTAL)


def test_factors_of_a_low_rank_compressor_are_pruned():
    model = network()
    pipeline = make_pipeline(SVDCompressor(rank=0.5), Pruner("lamp", sparsity=0.5))
    small = pipeline.fit_transform(model)
    sites = select(small, inside_factors=True).sites
    assert len(sites) > 4
    zeros = sum(int((site.slot.read() == 0).sum()) for site in sites)
    assert zeros == round(0.5 * sum(site.slot.size for site in sites))
    assert pipeline.transform(model)(IMAGES).shape == (48, 10)


def test_another_checkpoint_loses_as_many_of_its_own_values():
    model, later = network(), network()
    with torch.no_grad():
        for weight in weights(later):
            weight.add_(random(*weight.shape, seed=5, dtype=torch.float32), alpha=0.05)
    pruner = Pruner("magnitude", 0.7).fit(model)
    sparse = pruner.transform(later)
    for name, before, after in zip(WEIGHTS, weights(later), weights(sparse), strict=True):
        kept = after != 0
        assert int(kept.sum()) == pruner.kept_[name]
        assert before[kept].abs().min() >= before[~kept].abs().max()


def test_a_meta_model_gives_the_structure():
    pruner = Pruner("magnitude", 0.7).fit(network())
    sparse = pruner.transform(copy.deepcopy(network()).to("meta"))
    assert all(p.is_meta for p in sparse.parameters())


def test_the_plan_survives_json_and_the_report_counts():
    model = network()
    pruner = Pruner("lamp", 0.9).fit(model)
    again = Plan.from_dict(json.loads(json.dumps(pruner.plan_.to_dict())))
    assert again == pruner.plan_
    zeros = pruner.report_.zeros
    assert zeros.weights == TOTAL
    assert zeros.zeros == (0, round(0.9 * TOTAL))
    assert zeros.n_bytes[0] == zeros.n_bytes[1]
    rest = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    rest -= 4 * TOTAL
    nonzeros = TOTAL - round(0.9 * TOTAL)
    assert zeros.packed == rest + 4 * nonzeros + sum(-(-w.numel() // 8) for w in weights(model))
    text = str(pruner.report_)
    assert f"90.01% zeros in {TOTAL:,} weights that count" in text
    assert "rank" not in text.splitlines()[0]
    assert pruner.report_.rows()[0]["zeros"] == 576 - pruner.kept_["0"]
    assert "kept" in str(pruner.plan_)


def test_zeros_that_are_there_count_among_those_asked_for():
    first = Pruner("magnitude", 0.5).fit_transform(network())
    pruner = Pruner("magnitude", 0.5)
    assert torch.equal(pruner.fit_transform(first)[7].weight, first[7].weight)
    assert pruner.report_.zeros.zeros == (TOTAL // 2, TOTAL // 2)


def test_the_error_is_the_norm_of_what_becomes_zero():
    model = network()
    pruner = Pruner("lamp", 0.8).fit(model)
    lost = (model[7].weight - pruner.transform(model)[7].weight).norm() / model[7].weight.norm()
    assert pruner.plan_["7"].error == pytest.approx(float(lost), rel=1e-4)


def test_there_is_no_way_back():
    pruner = Pruner().fit(network())
    with pytest.raises(InverseError, match="Pruner has no inverse_transform: what it removes"):
        pruner.inverse_transform(pruner.transform(network()))


class FromTheMiddle(Criterion):
    """A stranger's, of one method."""

    def scores(self, weight):
        return (weight - weight.mean()).abs()


def test_criteria_and_allocations_are_taken_as_instances():
    pruner = Pruner(FromTheMiddle(), 0.5, allocation=registry.make("allocations", "uniform"))
    assert n_zeros(clone(pruner).fit_transform(network())) == TOTAL // 2
    assert pruner.fit(network()).plan_["7"].scheme == "fromthemiddle"


def test_equal_scores_are_cut_to_the_number_every_time_alike():
    model = network()
    with torch.no_grad():
        for weight in weights(model):
            weight.fill_(0.5)
    one, other = (Pruner("magnitude", 0.37).fit_transform(model) for _ in range(2))
    assert n_zeros(one) == round(0.37 * TOTAL)
    assert all(map(torch.equal, weights(one), weights(other)))
    kept = (one[7].weight != 0).sum(1)
    assert kept.max() - kept.min() <= 1


@pytest.mark.parametrize("sparsity", [0.9, 0.98, 0.985, 0.995, 0.9999, 1 - 1e-6])
def test_any_sparsity_is_reached_without_another_parameter(sparsity):
    """Every weight keeps some values as long as there are as many as weights."""
    sizes = [(40, 30), (2, 30), (20, 2)]
    model = nn.ModuleList(nn.Linear(n, out, bias=False) for out, n in sizes)
    for pruner in (Pruner("magnitude"), MagnitudePruner()):
        sparse = pruner.set_params(sparsity=sparsity).fit_transform(model)
        kept = [int((layer.weight != 0).sum()) for layer in sparse]
        total = sum(out * n for out, n in sizes)
        assert sum(kept) == total - round(sparsity * total)
        assert all(kept) or sum(kept) < 2 * len(sizes)


def test_the_least_share_is_a_hundredth_where_that_fits():
    for sparsity, share in ((0.5, 0.01), (0.98, 0.01), (0.99, 0.005)):
        assert least_kept("auto", sparsity, [10_000, 150]) == [
            least_kept(share, sparsity, [n])[0] for n in (10_000, 150)
        ]
