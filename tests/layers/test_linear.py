from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from models import RANK, distance, exact, low_rank_, random, seeded
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from skcompress import SVDCompressor, count_parameters
from skcompress.errors import NoLayerError
from skcompress.layers.linear import FactorizedLinear


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
