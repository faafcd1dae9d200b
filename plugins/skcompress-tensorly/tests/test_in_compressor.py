"""Both decompositions by name, inside the compressors of skcompress."""

from __future__ import annotations

import pytest
import torch
from skcompress_tensorly import CP, TensorTrain
from torch import nn

from skcompress import LowRankCompressor, count_parameters
from skcompress.testing import check_compressor

SMALL_CP = CP(n_ranks=5, n_iter_max=5)


def make_model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 24, (3, 5), stride=(2, 1), padding=(1, 2), padding_mode="reflect"),
            nn.ReLU(), nn.Conv2d(24, 24, 3, groups=2, dilation=2, padding=2), nn.ReLU(),
            nn.ConvTranspose2d(24, 12, 3, stride=2, padding=1, output_padding=1), nn.ReLU(),
            nn.ConvTranspose2d(12, 12, 3, groups=2), nn.Conv2d(12, 8, 1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
        ).eval()  # fmt: skip


@pytest.fixture
def model() -> nn.Module:
    return make_model()


@pytest.fixture
def images(generator) -> torch.Tensor:
    return torch.randn(2, 3, 12, 12, generator=generator)


CHOICES = {
    "cp": "cp",
    "cp instance": SMALL_CP,
    "tensor_train": "tensor_train",
    "svd or tensor_train": ("svd", "tensor_train"),
    "all": ("svd", "tucker", "tensor_train", SMALL_CP),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_model_gets_smaller_and_runs_with_the_planned_error(choice, model, images):
    compressor = LowRankCompressor(decomposition=CHOICES[choice], rank=0.5)
    small = compressor.fit_transform(model)
    assert count_parameters(small) == compressor.n_parameters_out_ <= 0.5 * count_parameters(model)
    assert small(images).shape == model(images).shape
    for planned in compressor.plan_:
        if planned.rank is None:
            continue
        before = model.get_submodule(planned.name).weight.detach()
        layer = small.get_submodule(planned.name)
        after = layer.weight.detach()
        assert after.shape == before.shape
        lost = float((after - before).norm() / before.norm())
        assert lost == pytest.approx(planned.error, abs=1e-5), planned.name
        assert [s.size for s in planned.stages] == [p.numel() // planned.groups
                                                    for n, p in layer.named_parameters()
                                                    if n.endswith("weight")]  # fmt: skip


@pytest.mark.parametrize("choice", ["tensor_train", "cp"])
def test_every_layer_computes_what_its_weight_says(choice, model, images):
    small = LowRankCompressor(decomposition=choice, rank=0.5, layers=nn.modules.conv._ConvNd)
    small = small.fit_transform(model)
    x = images
    for dense, layer in zip(model, small, strict=True):
        if layer is not dense and hasattr(layer, "axis_owners"):
            with torch.no_grad():
                dense.weight.copy_(layer.weight)
            assert torch.allclose(layer(x), dense(x), atol=1e-5)
        x = dense(x)


def test_tensor_train_at_a_high_rank_loses_next_to_nothing(model, images):
    compressor = LowRankCompressor(decomposition="tensor_train", rank=0.999999, allocation="energy")
    small = compressor.fit_transform(model)
    assert torch.allclose(small(images), model(images), atol=1e-2)
    kept = LowRankCompressor(decomposition="tensor_train", rank=1.0).fit_transform(model)
    assert torch.equal(kept(images), model(images))


def test_cp_finds_what_was_low_rank(generator):
    layer = nn.Conv2d(12, 16, 3)
    with torch.no_grad():
        factors = [torch.randn(n, 2, generator=generator) for n in layer.weight.shape]
        layer.weight.copy_(torch.einsum("or,ir,xr,yr->oixy", *factors))
    model = nn.Sequential(layer)
    small = LowRankCompressor(decomposition="cp", rank=0.2).fit_transform(model)
    lost = (small[0].weight - layer.weight).norm() / layer.weight.norm()
    assert lost < 1e-3


def test_mixture_is_no_worse_than_either_alone(model):
    def lost(decomposition):
        plan = LowRankCompressor(decomposition=decomposition, rank=0.3).fit(model).plan_
        return sum(layer.error**2 for layer in plan)

    both = lost(("svd", "tensor_train"))
    assert both <= lost("svd") + 1e-9
    assert both <= lost("tensor_train") + 1e-9


def test_threads_of_the_compressor_give_the_same_model(model):
    def weights(n_jobs):
        compressor = LowRankCompressor(
            decomposition=(SMALL_CP, "tensor_train"), rank=0.4, random_state=0, n_jobs=n_jobs
        )
        return list(compressor.fit_transform(model).parameters())

    assert all(torch.equal(a, b) for a, b in zip(weights(1), weights(2), strict=True))


def test_compressor_seeds_the_random_start(model):
    def ranks(seed):
        decomposition = CP(n_ranks=4, n_iter_max=2, init="random")
        compressor = LowRankCompressor(decomposition, rank=0.4, random_state=seed)
        return [layer.error for layer in compressor.fit(model).plan_]

    assert ranks(0) == ranks(0)
    assert ranks(0) != ranks(1)


@pytest.mark.parametrize(
    ("decomposition", "rank"),
    [("tensor_train", 0.5), (CP(n_ranks=3, n_iter_max=2), 0.6)],
    ids=["tensor_train", "cp"],
)
def test_conformance_of_compressors_with_these_decompositions(decomposition, rank):
    check_compressor(LowRankCompressor(decomposition=decomposition, rank=rank))


def test_few_input_channels_with_data():
    """Of three, the train cuts none at most ranks, and at some ends in no pointwise factor."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3))
        images = torch.randn(8, 3, 10, 10)
    for rank in (0.3, 0.8):
        compressor = LowRankCompressor(decomposition="tensor_train", rank=rank)
        small = compressor.fit_transform(model, images)
        assert small(images).shape == model(images).shape
        assert compressor.n_parameters_out_ <= rank * compressor.n_parameters_in_


def test_options_of_tensor_train_on_a_later_checkpoint(model):
    compressor = LowRankCompressor(decomposition=TensorTrain(n_ranks=6), rank=0.5).fit(model)
    later = make_model()
    with torch.no_grad():
        for parameter in later.parameters():
            parameter.mul_(1.5)
    small, small_later = compressor.transform(model), compressor.transform(later)
    for a, b in zip(small, small_later, strict=True):
        if hasattr(a, "axis_owners"):
            assert torch.allclose(1.5 * a.weight, b.weight, atol=1e-4)
