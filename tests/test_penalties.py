"""Regularizers on whole models, in every kind of training loop."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel

from skcompress import FirstDifference, L1Norm, NuclearNorm, SVDCompressor, registry
from skcompress.errors import (
    ComputedWeightError,
    ModelTypeError,
    NoLayerError,
    NonFiniteWeightError,
    PluginTypeError,
    ProximalError,
    RegularizerValueError,
    SelectionError,
    UnknownNameError,
)


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(128, 5),
        )  # fmt: skip


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def penalty_gradients(regularizer, model):
    """What differentiating the penalty gives, parameter by parameter."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(regularizer(model), parameters, allow_unused=True)
    return {n: g for n, g in zip(names, found, strict=True) if g is not None}


def assert_same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert torch.allclose(gradient, expected[name], **tolerance), name


def test_it_is_the_strength_times_the_sum():
    model = network()
    parts = [model[0].weight, *model[3].weight.chunk(2), model[5].weight]
    expected = 0.5 * sum(torch.linalg.matrix_norm(p.detach().flatten(1), "nuc") for p in parts)
    assert float(NuclearNorm(0.5)(model).detach()) == pytest.approx(float(expected), rel=1e-5)


MODELS = {
    "convolutional": network,
    "attention": lambda: nn.TransformerEncoderLayer(16, 2, 24),
    "recurrent": lambda: nn.LSTM(5, 7, num_layers=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
    "embedding": lambda: nn.Embedding(9, 4),
    "weight_norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 6)),
    "spectral_norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(5, 6)).eval(),
    "older weight_norm": lambda: nn.utils.weight_norm(nn.Linear(5, 6)),
    "pruned": lambda: nn.utils.prune.random_unstructured(nn.Linear(5, 6), "weight", 0.5),
    "half": lambda: nn.Linear(5, 6, dtype=torch.bfloat16),
    "channels last": lambda: network().to(memory_format=torch.channels_last),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", MODELS)
def test_add_grad_adds_what_differentiating_the_penalty_gives(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS[kind]()
    both = NuclearNorm(0.3, every=2) + 2 * FirstDifference(0.1)
    fresh = NuclearNorm(0.3, every=2) + 2 * FirstDifference(0.1)
    expected = penalty_gradients(fresh, model)
    assert expected
    before = {k: v.clone() for k, v in model.state_dict().items()}
    both.add_grad_(model)
    tolerance = 2e-2 if kind == "half" else 1e-5
    assert_same(gradients(model), expected, rtol=tolerance, atol=tolerance)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for p in model.parameters():
        if p.grad is not None:
            assert p.grad.dtype == p.dtype
            assert p.grad.grad_fn is None


def test_gradients_add_to_those_of_the_loss_and_scale_multiplies():
    model = network()
    model(torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))).sum().backward()
    before = {k: g.clone() for k, g in gradients(model).items()}
    expected = penalty_gradients(L1Norm(0.1), model)
    L1Norm(0.1).add_grad_(model, scale=3.0)
    for name, gradient in gradients(model).items():
        added = 3 * expected.get(name, torch.zeros(()))
        assert torch.allclose(gradient, before[name] + added, atol=1e-6)


@pytest.mark.parametrize("way", ["penalty", "gradient", "prox"])
def test_every_takes_turns_and_keeps_the_mean(way):
    regularizer, constant = L1Norm(0.1, every=3), L1Norm(0.1)
    model = nn.Linear(4, 4)

    def effect(reg):
        with torch.no_grad():
            model.weight.fill_(10.0)
            model.weight.grad = torch.zeros(4, 4)
        if way == "penalty":
            return float(reg(model).detach())
        if way == "gradient":
            reg.add_grad_(model)
            return float(model.weight.grad.sum())
        reg.prox_(model, step=1.0)
        return float((10 - model.weight.detach()).sum())

    once = effect(constant)
    assert [effect(regularizer) for _ in range(7)] == pytest.approx(
        [3 * once, 0, 0, 3 * once, 0, 0, 3 * once], abs=1e-4
    )


def test_every_counts_each_model_for_itself():
    regularizer, a, b = L1Norm(1.0, every=2), nn.Linear(3, 3), nn.Linear(3, 3)
    first = [float(regularizer(m).detach()) > 0 for m in (a, b, a, b)]
    assert first == [True, True, False, False]


def test_sums_and_multiples():
    model = nn.Linear(5, 5)
    a, b = NuclearNorm(1e-2), FirstDifference(1e-1, layers=nn.Linear)
    expected = float((a(model) + 3 * b(model)).detach())
    assert float((a + 3 * b)(model).detach()) == pytest.approx(expected, rel=1e-6)
    assert float((2 * (a + b * 3.0))(model).detach()) == pytest.approx(2 * expected, rel=1e-6)
    assert a.weight == 1e-2
    with pytest.raises(TypeError):
        a + 1.0
    with pytest.raises(TypeError):
        a * "2"
    with pytest.raises(ProximalError, match="SumRegularizer has no proximal operator"):
        (a + b).prox_(model, 0.1)


def test_layers_and_exclude():
    model = network()
    assert set(penalty_gradients(L1Norm(1.0, layers=nn.Conv2d), model)) == {"0.weight", "3.weight"}
    assert set(penalty_gradients(L1Norm(1.0, exclude=["5", "0"]), model)) == {"3.weight"}
    with pytest.raises(SelectionError, match="layers='head'"):
        L1Norm(layers="head")(model)


def test_shared_weights_once_and_frozen_ones_not():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
            self.body = nn.Linear(4, 4)
            self.head.weight = self.embedding.weight

    model = Tied()
    L1Norm(1.0).add_grad_(model)
    assert float(model.head.weight.grad.abs().max()) == 1.0
    model.zero_grad()
    model.head.weight.requires_grad_(False)
    L1Norm(1.0).add_grad_(model)
    assert set(gradients(model)) == {"body.weight"}
    model.body.requires_grad_(False)
    assert float(L1Norm(1.0)(model)) == 0.0


def test_changes_of_the_model_are_noticed():
    regularizer, model = L1Norm(1.0), nn.Sequential(nn.Linear(3, 3))
    regularizer.add_grad_(model)
    model.append(nn.Linear(3, 2))
    model.zero_grad()
    regularizer.add_grad_(model)
    assert set(gradients(model)) == {"0.weight", "1.weight"}
    nn.utils.parametrizations.weight_norm(model[1])
    model.zero_grad()
    regularizer.add_grad_(model)
    assert "1.parametrizations.weight.original1" in gradients(model)
    small = SVDCompressor(rank={"0": 1}).fit_transform(nn.Sequential(nn.Linear(30, 30)))
    with pytest.raises(NoLayerError):
        regularizer(small)


def test_proximal_step_on_a_model():
    model = network()
    before = [p.clone() for p in model[3].weight.detach().chunk(2)]
    NuclearNorm(0.5).prox_(model, step=0.2)
    for group, old in zip(model[3].weight.detach().chunk(2), before, strict=True):
        values = torch.linalg.svdvals(old.flatten(1))
        assert torch.allclose(
            torch.linalg.svdvals(group.flatten(1)), (values - 0.1).clamp(min=0), atol=1e-5
        )
    tied = nn.MultiheadAttention(8, 2)
    expected = L1Norm().prox(tied.in_proj_weight.detach(), 0.1)
    L1Norm(1.0).prox_(tied, step=0.1)
    assert torch.allclose(tied.in_proj_weight, expected)


def test_proximal_step_on_a_computed_weight_is_refused_before_anything_changes():
    model = nn.Sequential(nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ComputedWeightError, match="weight of layer '1' is computed"):
        L1Norm(1.0).prox_(model, 0.1)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_autocast_computes_penalties_in_full_precision():
    model = nn.Linear(64, 64)
    exact = float(NuclearNorm(1.0)(model).detach())
    expected = penalty_gradients(NuclearNorm(1.0), model)
    with torch.autocast("cpu", torch.bfloat16):
        value = NuclearNorm(1.0)(model)
        NuclearNorm(1.0).add_grad_(model)
        inside = NuclearNorm().penalty(model.weight)
    assert float(value.detach()) == exact == float(inside.detach())
    assert_same(gradients(model), expected)


def test_gradscaler_and_accumulation():
    """As documented: once, after the last backward and after `unscale_`."""
    model, reference = network(), network()
    images = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for half in images.chunk(2):
        scaler.scale(model(half).square().mean() / 2).backward()
    scaler.unscale_(optimizer)
    NuclearNorm(0.1).add_grad_(model)
    for half in images.chunk(2):
        (reference(half).square().mean() / 2).backward()
    NuclearNorm(0.1)(reference).backward()
    assert_same(gradients(model), gradients(reference), atol=1e-5)
    scaler.step(optimizer)


def test_compiled_models_are_seen_through():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    compiled = torch.compile(model, backend="eager")
    compiled(torch.zeros(2, 6)).sum().backward()
    model.zero_grad()
    expected = penalty_gradients(NuclearNorm(1.0, layers="0"), model)
    NuclearNorm(1.0, layers="0").add_grad_(compiled)  # names are the user's own
    assert_same(gradients(model), expected)
    assert float(NuclearNorm(1.0)(compiled).detach()) == float(NuclearNorm(1.0)(model).detach())


WAYS = ("loss", "gradient")  # in which a penalty enters


def _train_in_process(rank, file, queue):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{file}", rank=rank, world_size=2
    )
    images = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    for way in WAYS:
        model = DistributedDataParallel(network())
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        regularizer = NuclearNorm(0.1, every=2)
        for _ in range(3):
            loss = model(images[rank::2]).square().mean()
            if way == "loss":
                loss = loss + regularizer(model)
            optimizer.zero_grad()
            loss.backward()
            if way == "gradient":
                regularizer.add_grad_(model)
            optimizer.step()
        if rank == 0:
            queue.put({k: v.detach().numpy() for k, v in model.module.named_parameters()})
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one(tmp_path):
    queue = torch.multiprocessing.get_context("spawn").SimpleQueue()
    spawn(_train_in_process, (tmp_path / "store", queue), nprocs=2)

    model = network()
    images = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    regularizer = NuclearNorm(0.1, every=2)
    for _ in range(3):
        # BatchNorm sees the half of each process.
        loss = sum(model(half).square().mean() / 2 for half in (images[0::2], images[1::2]))
        optimizer.zero_grad()
        (loss + regularizer(model)).backward()
        optimizer.step()
    for way in WAYS:
        found = queue.get()
        for name, parameter in model.named_parameters():
            assert torch.allclose(torch.from_numpy(found[name]), parameter, atol=1e-5), (way, name)


def test_training_with_the_penalty_leaves_fewer_directions():
    plain, smooth = network(), network()
    images = torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    target = images.mean((2, 3)).repeat(1, 2)[:, :5]
    for model, strength in ((plain, 0.0), (smooth, 3e-2)):
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            (model(images) - target).square().mean().backward()
            NuclearNorm(strength).add_grad_(model)
            optimizer.step()
    spread = registry.make("regularizers", "nuclear_ratio").set_params(weight=1.0)
    assert float(spread(smooth).detach()) < 0.8 * float(spread(plain).detach())


def test_a_used_regularizer_pickles_and_copies_without_the_model():
    regularizer, model = NuclearNorm(0.1, every=2), nn.Linear(300, 300)
    regularizer(model)
    assert len(pickle.dumps(regularizer)) < 1000
    assert float(copy.deepcopy(regularizer)(model).detach()) > 0  # counts from the start
    assert regularizer.get_params().keys() == NuclearNorm().get_params().keys()


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf"), "1", None])
def test_bad_strength(weight):
    with pytest.raises(RegularizerValueError, match="weight of NuclearNorm must be a finite"):
        NuclearNorm(weight)(nn.Linear(3, 3))
    with pytest.raises(RegularizerValueError, match=r"weight of NuclearNorm .* got"):
        (NuclearNorm(weight) + L1Norm()).add_grad_(nn.Linear(3, 3))


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_bad_every(every):
    with pytest.raises(RegularizerValueError, match="every of NuclearNorm must be an int >= 1"):
        NuclearNorm(every=every).add_grad_(nn.Linear(3, 3))


@pytest.mark.parametrize("step", [-0.1, float("nan")])
def test_bad_step(step):
    with pytest.raises(RegularizerValueError, match=r"step of NuclearNorm.prox_ must be"):
        NuclearNorm().prox_(nn.Linear(3, 3), step)


@pytest.mark.parametrize("way", ["penalty", "gradient", "prox"])
def test_nan_met_during_training_names_the_layer(way):
    model = network()
    with torch.no_grad():
        model[3].weight[0, 0, 0, 0] = float("nan")
    regularizer = NuclearNorm(0.1)
    calls = {
        "penalty": lambda: regularizer(model),
        "gradient": lambda: regularizer.add_grad_(model),
        "prox": lambda: regularizer.prox_(model, 0.1),
    }
    with pytest.raises(NonFiniteWeightError, match="layer '3' has 1 NaN"):
        calls[way]()
    assert not gradients(model)


def test_not_a_model_and_no_layer():
    with pytest.raises(ModelTypeError, match="NuclearNorm takes a"):
        NuclearNorm()(torch.zeros(3))
    with pytest.raises(NoLayerError, match="NuclearNorm found no layer"):
        NuclearNorm()(nn.ReLU())


def test_a_name_of_another_kind():
    with pytest.raises(UnknownNameError, match="no regularizers is named 'svd'"):
        registry.make("regularizers", "svd")
    with pytest.raises(PluginTypeError, match="regularizers must be names or instances"):
        registry.make("regularizers", SVDCompressor())


def test_a_penalty_of_ones_own_needs_the_protocols_only():
    """Nothing else is imported before a model comes, and then all of it works."""
    code = """
import sys, torch
from skcompress.protocols import Regularizer
class Squares(Regularizer):
    def penalty(self, weight):
        return weight.square().sum()
    def prox(self, weight, step):
        return weight / (1 + 2 * step)
assert "skcompress.penalties" not in sys.modules
layer = torch.nn.Linear(2, 2)
torch.nn.init.ones_(layer.weight)
both = Squares(1.0) + 0.5 * Squares(1.0)
assert float(both(layer)) == 6.0
both.add_grad_(layer)
assert (layer.weight.grad == 3).all()
Squares(1.0).prox_(layer, 0.5)
assert (layer.weight == 0.5).all()
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
