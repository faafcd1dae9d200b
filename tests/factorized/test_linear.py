from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from models import RANK, distance, exact, low_rank_, random, seeded
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from skcompress import SVDCompressor, count_parameters
from skcompress.errors import NoLayerError
from skcompress.factorized.linear import FactorizedLinear


def linear(bias: bool = True) -> nn.Linear:
    return low_rank_(seeded(lambda: nn.Linear(20, 24, bias=bias, dtype=torch.float64)))


def reason(layer: nn.Module) -> str:
    """Why a layer is left, when it stands beside one that is compressed."""
    compressor = exact()
    small = compressor.fit_transform(nn.Sequential(layer, nn.Linear(16, 16)))
    assert type(small[0]) is type(layer)
    assert isinstance(small[1], FactorizedLinear)
    return compressor.plan_["0"].reason


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(), (5,), (2, 5), (2, 0, 5), (2, 3, 4, 5)])
def test_any_leading_dimensions(bias, leading):
    dense = linear(bias)
    small = exact().fit_transform(dense)
    x = random(*leading, 20)
    assert distance(small(x), dense(x)) < 1e-12


def test_truncation_is_the_truncated_svd_of_the_weight():
    dense = seeded(lambda: nn.Linear(20, 24, dtype=torch.float64))
    small = SVDCompressor(rank=4).fit_transform(dense)
    left, values, right = torch.linalg.svd(dense.weight, full_matrices=False)
    best = (left[:, :4] * values[:4]) @ right[:4]
    assert distance(small.weight, best) < 1e-12
    x = random(3, 20)
    assert distance(small(x), F.linear(x, best, dense.bias)) < 1e-12


def test_answers_as_the_original():
    dense = linear()
    small = exact().fit_transform(dense)
    assert (small.in_features, small.out_features) == (20, 24)
    assert torch.equal(small.bias, dense.bias)
    assert distance(small.weight, dense.weight) < 1e-12
    assert not isinstance(small.weight, nn.Parameter)
    assert exact().fit_transform(linear(bias=False)).bias is None


def test_stages_are_plain_linear_layers_with_the_bias_last():
    small = exact().fit_transform(linear())
    assert [type(stage) for stage in small] == [nn.Linear, nn.Linear]
    assert [stage.bias is None for stage in small] == [True, False]
    assert [(s.in_features, s.out_features) for s in small] == [(20, RANK), (RANK, 24)]


def test_conv1d_of_transformers_keeps_its_transposed_weight():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    dense = low_rank_(seeded(lambda: conv1d(24, 20).double()))
    with torch.no_grad():
        dense.bias.copy_(random(24))
    compressor = exact()
    small = compressor.fit_transform(dense)
    assert (small.nx, small.nf) == (20, 24)
    assert small.weight.shape == dense.weight.shape == (20, 24)
    assert distance(small.weight, dense.weight) < 1e-12
    for x in (random(3, 20), random(2, 3, 20)):
        assert distance(small(x), dense(x)) < 1e-12
    assert compressor.plan_["(model)"].shape == (24, 20)


def test_subclass_that_keeps_forward_is_compressed():
    class Named(nn.Linear):
        def title(self):
            return "named"

    for cls in (Named, NonDynamicallyQuantizableLinear):
        dense = low_rank_(seeded(lambda cls=cls: cls(20, 24, dtype=torch.float64)))
        small = exact().fit_transform(dense)
        x = random(3, 20)
        assert isinstance(small, FactorizedLinear)
        assert distance(small(x), dense(x)) < 1e-12


class _Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class _Gated(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.gate = nn.Parameter(torch.ones(16))


class _Scaled(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("scale", torch.ones(16))


def test_layers_that_compute_something_else_are_left_with_the_reason():
    assert reason(_Doubled(16, 16)) == "_Doubled rewrites forward of Linear"
    replaced = nn.Linear(16, 16)
    replaced.forward = lambda x: x
    assert "rewrites forward" in reason(replaced)


def test_layers_that_hold_more_are_left_with_the_reason():
    assert "holds more" in reason(_Gated(16, 16))
    assert "gate" in reason(_Gated(16, 16))
    assert "scale" in reason(_Scaled(16, 16))


def test_layers_inside_a_refused_layer_are_compressed():
    class Adapted(_Doubled):
        def __init__(self):
            super().__init__(16, 16)
            self.adapter = nn.Linear(16, 16)

        def forward(self, x):
            return super().forward(x) + self.adapter(x)

    model = low_rank_(seeded(Adapted).double())
    compressor = exact()
    small = compressor.fit_transform(model)
    assert isinstance(small.adapter, FactorizedLinear)
    assert compressor.plan_["(model)"].before == 16 * 16 + 16
    assert count_parameters(small) == compressor.n_parameters_out_
    x = random(3, 16)
    assert distance(small(x), model(x)) < 1e-12


def test_bilinear_is_left_with_the_reason():
    assert "two inputs" in reason(nn.Bilinear(8, 8, 8))


def test_weight_that_is_no_parameter_is_left_with_the_reason():
    buffered = nn.Linear(16, 16)
    weight = buffered.weight.detach()
    del buffered.weight
    buffered.register_buffer("weight", weight)
    assert "not a parameter" in reason(buffered)
    no_bias_parameter = nn.Linear(16, 16)
    bias = no_bias_parameter.bias.detach()
    del no_bias_parameter.bias
    no_bias_parameter.register_buffer("bias", bias)
    assert "bias is not a parameter" in reason(no_bias_parameter)


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_weight_of_other_numbers_is_left_with_the_reason(dtype):
    layer = nn.Linear(16, 16)
    layer.weight = nn.Parameter(torch.ones(16, 16).to(dtype), requires_grad=False)
    assert str(dtype) in reason(layer)


def test_empty_weight_is_left_with_the_reason():
    layer = nn.Linear(16, 4)
    layer.weight = nn.Parameter(torch.empty(0, 16))
    assert reason(layer) == "an empty weight"


def test_lazy_layer_is_refused_until_it_has_a_shape():
    lazy = nn.LazyLinear(16)
    with pytest.raises(NoLayerError, match="run one batch"):
        exact().fit(lazy)
    lazy(torch.zeros(1, 16))
    assert isinstance(exact().fit_transform(lazy), FactorizedLinear)


# --- weights that are computed from other parameters ----------------------------------

NORMS = {
    "weight_norm of hooks": weight_norm,
    "spectral_norm of hooks": spectral_norm,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "pruning": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.3),
    "pruning twice": lambda layer: prune.random_unstructured(
        prune.l1_unstructured(layer, "weight", amount=0.3), "weight", amount=0.1
    ),
}


def normed(name: str) -> nn.Module:
    def build():
        layer = NORMS[name](nn.Linear(20, 24, dtype=torch.float64))
        for _ in range(30):  # spectral norms converge in training mode
            layer(torch.zeros(1, 20, dtype=torch.float64))
        return layer

    return seeded(build)


every_norm = pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated"))
        for n in NORMS
    ],
)


@every_norm
@pytest.mark.parametrize("training", [True, False])
def test_the_weight_in_force_is_factorised(name, training):
    dense = normed(name).train(training)
    state = {key: value.clone() for key, value in dense.state_dict().items()}
    compressor = SVDCompressor(rank=10)
    small = compressor.fit_transform(nn.Sequential(dense))[0]
    after = dense.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[key], state[key]) for key in state)

    assert isinstance(small, FactorizedLinear)
    assert small.training == dense.training == training
    assert count_parameters(small) == compressor.n_parameters_out_
    dense.eval()
    weight = dense(torch.eye(20, dtype=torch.float64)).mT - dense.bias[:, None]
    # The truncated SVD itself is not unique where singular values repeat; its error is.
    values = torch.linalg.svdvals(weight)
    least = float((values[10:].norm() / values.norm()).detach())
    assert distance(small.weight, weight) == pytest.approx(least, abs=1e-9)
    small(random(3, 20)).sum().backward()
    assert all(stage.weight.grad is not None for stage in small)


@every_norm
def test_a_dense_copy_computes_its_weight_as_before(name):
    dense = normed(name)
    model = nn.Sequential(dense, nn.Linear(24, 24, dtype=torch.float64))
    small = exact(layers="1").fit_transform(model)
    assert type(small[0]).__name__ == type(dense).__name__  # torch makes a class of each
    x = random(3, 20)
    assert distance(small[0].eval()(x), dense.eval()(x)) == 0.0
    small[0](x).sum().backward()
    trained = [p for p in small[0].parameters() if p.grad is not None]
    assert len(trained) == len(list(dense.parameters()))
    assert all(p.grad is None for p in dense.parameters())


@every_norm
def test_computed_weights_on_the_meta_device(name):
    dense = normed(name)
    compressor = SVDCompressor(rank=4).fit(dense)
    hollow = compressor.transform(normed(name).to("meta"))
    assert [p.shape for p in hollow.parameters()] == [(4, 20), (24, 4), (24,)]


def test_pruned_weight_that_was_trained_since_the_last_call():
    dense = prune.l1_unstructured(
        seeded(lambda: nn.Linear(20, 24, dtype=torch.float64)), "weight", amount=0.3
    )
    with torch.no_grad():
        dense.weight_orig.mul_(3.0)  # as an optimiser does; `weight` is out of date now
    x = random(3, 20)
    small = SVDCompressor(rank=10).fit_transform(dense)
    left, values, right = torch.linalg.svd(dense.weight_orig * dense.weight_mask)
    best = (left[:, :10] * values[:10]) @ right[:10]
    assert distance(small(x), F.linear(x, best, dense.bias)) < 1e-10


def test_computed_bias_is_left_with_the_reason():
    parametrized = nn.Linear(16, 16)
    parametrize.register_parametrization(parametrized, "bias", nn.ReLU())
    pruned = prune.l1_unstructured(nn.Linear(16, 16), "bias", amount=0.3)
    for layer in (parametrized, pruned):
        model = nn.Sequential(layer, nn.Linear(16, 16))
        compressor = exact()
        small = compressor.fit_transform(model)
        assert compressor.plan_["0"].reason == "its bias is computed from other parameters"
        x = random(2, 16, dtype=torch.float32)
        assert torch.equal(small[0](x), layer(x))


def test_a_parametrization_that_two_layers_share_keeps_them_dense():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.mask = nn.Parameter(torch.ones(16, 16))

        def forward(self, weight):
            return weight * self.mask

    model = seeded(lambda: nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)))
    shared = Masked()
    parametrize.register_parametrization(model[0], "weight", shared)
    parametrize.register_parametrization(model[1], "weight", shared)
    compressor = exact()
    small = compressor.fit_transform(model)
    assert all("shares its weight among 0, 1" in compressor.plan_[n].reason for n in "01")
    assert isinstance(small[2], FactorizedLinear)
    assert count_parameters(small) == compressor.n_parameters_out_
