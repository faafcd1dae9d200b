"""What runs on a CPU runs on a GPU and comes to the same: over everything registered."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from skcompress import (
    CompressionSearch,
    Pruner,
    SmoothClassifier,
    SVDCompressor,
    count_parameters,
    registry,
)
from skcompress.spaces import FloatRange
from skcompress.testing import awkward_weights, small_models

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU that this build of torch can use"
)

# Of SVDCompressor with data.
SETTINGS = [
    {},
    {"reconstruction": "independent"},
    {"metric": "fisher", "refit_dense": True, "pivot": True},
    {"sensitivity": "auto"},
    {"fold_norm": True, "cost": "flops", "rank": 0.6},
    {"scheme": "output", "max_positions": 20, "calibration_memory": 2**16},
    {"decomposition": ["svd", "spatial_svd", "tucker"]},
]
# Weights with singular vectors that rounding decides, or products alone do not find.
SINGULAR = {
    "square (12, 12)", "all zero", "rank one", "rank deficient", "repeated singular values",
    "spectrum 0.5^i",
}  # fmt: skip


def ours(kind):
    """Registered by this package."""
    home = {name: registry.resolve(kind, name).__module__ for name in registry.names(kind)}
    return [name for name, module in home.items() if module.startswith("skcompress.")]


def inputs_of(name, n=64):
    """Inputs of one of the small models."""
    generator = torch.Generator().manual_seed(1)
    shape = {"multilayer perceptron": (20,), "convolutional": (3, 12, 12), "transformer": (7, 24)}
    return torch.randn(n, *shape[name], generator=generator)


def small_model(name):
    """One of the small models; no two weights are alike, so that no budget meets a tie."""
    model = next(m for n, m, _ in small_models() if n == name)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def outputs(model, x):
    with torch.no_grad():
        return model(x.to(next(model.parameters()).device)).cpu()


def on_both(compressor, model, data, x):
    """Fit and transform on both; how far the two are from each other, relative to the model."""
    before = copy.deepcopy(model)
    on_gpu = copy.deepcopy(model).cuda()
    small = copy.deepcopy(compressor).fit_transform(model, data)
    fitted = copy.deepcopy(compressor)
    small_on_gpu = fitted.fit_transform(on_gpu, data)
    assert all(t.is_cuda for t in small_on_gpu.state_dict().values())
    for one, other in zip(before.parameters(), on_gpu.parameters(), strict=True):
        assert torch.equal(one, other.cpu())
    assert str(fitted.report_)
    assert count_parameters(small_on_gpu) == count_parameters(small)
    dense = outputs(model, x)
    return float((outputs(small_on_gpu, x) - outputs(small, x)).norm() / dense.norm())


@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize("case", [name for name, _, _ in small_models()])
@pytest.mark.parametrize("name", ours("compressors"))
def test_compressors(name, case, with_data):
    model = small_model(case)
    data = inputs_of(case) if with_data else None
    assert on_both(registry.make("compressors", name), model, data, inputs_of(case, 8)) < 2e-3


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_settings_with_data(settings):
    from skcompress import LowRankCompressor

    model = small_model("convolutional")
    kind = LowRankCompressor if "decomposition" in settings else SVDCompressor
    compressor = kind(random_state=0).set_params(**settings)
    x = inputs_of("convolutional")
    assert on_both(compressor, model, x, x[:8]) < 2e-3


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("criterion", ours("criteria"))
def test_criteria(criterion, refit):
    model = small_model("convolutional")
    x = inputs_of("convolutional")
    pruner = Pruner(criterion, sparsity=0.6, refit=refit, random_state=0)
    assert on_both(pruner, model, x, x[:8]) < 2e-3


@pytest.mark.parametrize("name", ours("regularizers"))
def test_regularizers(name):
    penalty = registry.make("regularizers", name)
    for case, weight in awkward_weights():
        value, found = penalty.penalty(weight.double()), penalty.penalty(weight.cuda())
        assert found.is_cuda, case
        assert float(found) == pytest.approx(float(value), rel=1e-3, abs=1e-5), case
        if case not in SINGULAR:
            gradient = penalty.gradient(weight.double())
            found = penalty.gradient(weight.cuda())
            assert found.is_cuda, case
            error = (found.cpu().double() - gradient).norm()
            assert error <= 1e-2 * gradient.norm() + 1e-5, case


@pytest.mark.parametrize("name", ours("regularizers"))
def test_penalties_of_models(name):
    penalty = registry.make("regularizers", name)
    gradients = []
    for device in ("cpu", "cuda"):
        model = small_model("transformer").to(device)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        penalty.add_grad_(model)
        gradients.append(torch.cat([p.grad.flatten().cpu() for p in model.parameters()]))
    assert (gradients[0] - gradients[1]).norm() <= 1e-2 * gradients[0].norm()


@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize("name", ours("compressors"))
@pytest.mark.parametrize("fitted_on_gpu", [False, True])
def test_a_model_that_was_moved(name, with_data, fitted_on_gpu):
    model = small_model("convolutional")
    x = inputs_of("convolutional")
    there, here = copy.deepcopy(model).cuda(), copy.deepcopy(model)
    if not fitted_on_gpu:
        there, here = here, there
    compressor = registry.make("compressors", name).fit(there, x if with_data else None)
    small, moved = compressor.transform(there), compressor.transform(here)
    assert {p.device for p in moved.parameters()} == {p.device for p in here.parameters()}
    for one, other in zip(small.parameters(), moved.parameters(), strict=True):
        assert torch.equal(one.cpu(), other.cpu())


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_searches(n_jobs):
    pytest.importorskip("optuna")
    model = small_model("convolutional").cuda()
    x = inputs_of("convolutional")
    dense = outputs(model, x)
    search = CompressionSearch(
        SVDCompressor(), {"rank": FloatRange(0.4, 0.9)},
        scoring=lambda small: -float((outputs(small, x) - dense).norm()),
        objectives=("score", "n_parameters", "latency"), n_trials=4, n_jobs=n_jobs, random_state=0,
    ).fit(model, x)  # fmt: skip
    assert next(search.best_model_.parameters()).is_cuda
    assert search.pareto_front_


def test_trains_smooth():
    pytest.importorskip("skorch")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 16, generator=generator)
    labels = (x[:, 0] > 0).long()
    classifier = SmoothClassifier(
        regularizer="nuclear_norm", compressor="svd", max_epochs=20, lr=1e-2, device="cuda",
        random_state=0, verbose=0,
    ).fit(x.numpy(), labels.numpy())  # fmt: skip
    assert classifier.score(x.numpy(), labels.numpy()) > 0.8
    assert isinstance(classifier.module_, nn.Module)
    assert next(classifier.module_.parameters()).is_cuda
