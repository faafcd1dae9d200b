from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from models import RANK, distance, exact, low_rank_, random, seeded
from pairwise import pairwise
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from skcompress import SVDCompressor, TuckerCompressor, count_parameters
from skcompress.layers.convolution import FactorizedConv

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
SIZES = (11, 10, 9)

COMPRESSORS = {
    "output": exact(scheme="output"),
    "input": exact(scheme="input"),
    "spatial": exact(scheme="spatial"),
    "auto": exact(),
    "tucker": TuckerCompressor(rank=RANK),
    "output, pivoted": exact(scheme="output", pivot=True),
    "input, pivoted": exact(scheme="input", pivot=True),
    "tucker, pivoted": TuckerCompressor(rank=RANK, pivot=True),
}
every_compressor = pytest.mark.parametrize(
    "compressor", COMPRESSORS.values(), ids=COMPRESSORS.keys()
)


def build(cls, *arguments, **settings) -> nn.Module:
    def make():
        return cls(*arguments, **settings, dtype=torch.float64)

    return low_rank_(seeded(make)).eval()


def images(conv: nn.Module, n_axes: int) -> torch.Tensor:
    return random(2, conv.in_channels, *SIZES[:n_axes])


def check(dense: nn.Module, compressor, x: torch.Tensor) -> nn.Module:
    """The stand-in has factors, fewer numbers and the same results."""
    small = compressor.fit_transform(dense)
    assert isinstance(small, FactorizedConv)
    assert count_parameters(small) == compressor.n_parameters_out_ < count_parameters(dense)
    assert distance(small.weight, dense.weight) < 1e-12
    assert distance(small(x), dense(x)) < 1e-12
    unbatched = x[0]
    assert distance(small(unbatched), dense(unbatched)) < 1e-12
    back = compressor.inverse_transform(small)
    assert type(back) is type(dense)
    assert repr(back) == repr(dense)
    assert distance(back(x), dense(x)) < 1e-12
    return small


@pairwise(
    compressor=COMPRESSORS,
    n_axes=[1, 2, 3],
    settings=[
        {},
        {"bias": False},
        {"stride": 2},
        {"padding": 1},
        {"padding": 2, "stride": 2, "dilation": 2},
        {"padding": "same", "dilation": 2},
        {"padding": "valid", "stride": 3},
        {"groups": 2, "padding": 1},
        {"groups": 2, "stride": 2, "dilation": 2},
    ],
)
def test_settings(compressor, n_axes, settings):
    dense = build(CONV[n_axes], 8, 12, 3, **settings)
    check(dense, compressor, images(dense, n_axes))


@pairwise(
    compressor=COMPRESSORS,
    mode=["zeros", "reflect", "replicate", "circular"],
    padding=[(2, 1), "same"],
)
def test_padding_modes(compressor, mode, padding):
    dense = build(nn.Conv2d, 8, 12, (5, 3), padding=padding, padding_mode=mode)
    check(dense, compressor, images(dense, 2))


@pairwise(compressor=COMPRESSORS, mode=["reflect", "replicate", "circular"], n_axes=[1, 3])
def test_padding_modes_of_other_dimensions(compressor, mode, n_axes):
    dense = build(CONV[n_axes], 8, 12, 3, padding=1, padding_mode=mode)
    check(dense, compressor, images(dense, n_axes))


@pairwise(
    compressor=COMPRESSORS,
    kernel=[(1, 1), (4, 2), (1, 3), (5, 1), (3, 5)],
    padding=[(0, 0), (2, 1), "same"],
)
def test_kernels(compressor, kernel, padding):
    dense = build(nn.Conv2d, 12, 16, kernel, padding=padding)
    check(dense, compressor, images(dense, 2))


@every_compressor
def test_every_axis_has_its_own_settings(compressor):
    dense = build(
        nn.Conv3d, 6, 10, (3, 2, 4), stride=(1, 2, 3), padding=(2, 0, 1), dilation=(2, 1, 2)
    )
    check(dense, compressor, images(dense, 3))


@every_compressor
@pytest.mark.parametrize("kernel", [(1, 3, 3), (3, 1, 3), (3, 3, 1), (1, 1, 3)], ids=str)
def test_flat_kernels_of_three_axes(compressor, kernel):
    dense = build(nn.Conv3d, 8, 12, kernel, stride=2, padding=1)
    check(dense, compressor, images(dense, 3))


@every_compressor
def test_stride_of_a_pointwise_convolution(compressor):
    dense = build(nn.Conv2d, 12, 16, 1, stride=2, padding=1)
    check(dense, compressor, images(dense, 2))


@pairwise(
    compressor=COMPRESSORS,
    n_axes=[1, 2, 3],
    settings=[
        {},
        {"bias": False, "padding": 1},
        {"stride": 2, "output_padding": 1},
        {"stride": 3, "padding": 2, "output_padding": 2, "dilation": 2},
        {"groups": 2, "stride": 2},
        {"groups": 4, "dilation": 3, "output_padding": 2},
    ],
)
def test_transposed_settings(compressor, n_axes, settings):
    dense = build(TRANSPOSED[n_axes], 16, 24, 3, **settings)
    check(dense, compressor, images(dense, n_axes)[..., :5])


@every_compressor
@pytest.mark.parametrize("kernel", [(1, 3), (4, 1), (1, 1), (2, 5)], ids=str)
def test_transposed_kernels(compressor, kernel):
    dense = build(nn.ConvTranspose2d, 12, 16, kernel, stride=(3, 2), output_padding=(2, 1))
    check(dense, compressor, images(dense, 2))


@pairwise(compressor=COMPRESSORS, groups=[1, 2], n_axes=[1, 2, 3])
def test_output_size_of_transposed_convolutions(compressor, groups, n_axes):
    kernel = (3, 4, 2)[:n_axes]
    dense = build(TRANSPOSED[n_axes], 8, 12, kernel, stride=3, padding=1, groups=groups)
    small = compressor.fit_transform(dense)
    x = random(2, 8, *(5, 4, 3)[:n_axes])
    least = dense(x).shape[2:]
    for more in (0, 1, 2):
        size = [n + more for n in least]
        assert distance(small(x, output_size=size), dense(x, output_size=size)) < 1e-12
        whole = [2, 12, *size]
        assert distance(small(x, whole), dense(x, whole)) < 1e-12
        assert distance(small(x[0], size), dense(x[0], size)) < 1e-12
    too_large = [n + 3 for n in least]
    for module in (dense, small):
        with pytest.raises(ValueError, match="output size"):
            module(x, too_large)


@pytest.mark.parametrize("scheme", ["output", "input", "spatial"])
@pytest.mark.parametrize("groups", [1, 2])
def test_truncation_computes_with_the_weight_that_it_reports(scheme, groups):
    dense = seeded(lambda: nn.Conv2d(8, 12, 3, padding=1, groups=groups, dtype=torch.float64))
    small = SVDCompressor(rank=3 - groups // 2, scheme=scheme).fit_transform(dense)
    x = images(dense, 2)
    expected = F.conv2d(x, small.weight, dense.bias, padding=1, groups=groups)
    assert distance(small(x), expected) < 1e-12
    assert distance(small.weight, dense.weight) > 0.1


def test_truncation_of_tucker_computes_with_the_weight_that_it_reports():
    dense = seeded(lambda: nn.ConvTranspose2d(8, 12, 3, groups=2, dtype=torch.float64))
    small = TuckerCompressor(rank=2).fit_transform(dense)
    x = images(dense, 2)
    expected = F.conv_transpose2d(x, small.weight, dense.bias, groups=2)
    assert distance(small(x), expected) < 1e-12
    assert distance(small.weight, dense.weight) > 0.1


@pytest.mark.parametrize("scheme", ["output", "input", "spatial"])
def test_error_is_the_tail_of_the_unfolding_in_every_group(scheme):
    dense = seeded(lambda: nn.Conv2d(8, 12, 3, groups=2, dtype=torch.float64))
    compressor = SVDCompressor(rank=2, scheme=scheme)
    small = compressor.fit_transform(dense)
    tail = 0.0
    for group in dense.weight.detach().chunk(2):
        out, inputs, height, width = group.shape
        matrix = {
            "output": group.reshape(out, -1),
            "input": group.permute(0, 2, 3, 1).reshape(-1, inputs),
            "spatial": group.permute(0, 3, 1, 2).reshape(out * width, inputs * height),
        }[scheme]
        tail += float(torch.linalg.svdvals(matrix)[2:].square().sum())
    error = (tail**0.5) / float(dense.weight.detach().norm())
    assert distance(small.weight, dense.weight) == pytest.approx(error, rel=1e-9)
    assert compressor.plan_["(model)"].error == pytest.approx(error, rel=1e-9)


def test_answers_as_the_original():
    for dense in (
        build(nn.Conv2d, 8, 12, (3, 1), stride=2, padding=(1, 0), dilation=2, groups=2),
        build(nn.ConvTranspose2d, 8, 12, 3, stride=2, output_padding=1),
        build(nn.Conv1d, 8, 12, 3, padding="same", padding_mode="reflect"),
    ):
        small = exact().fit_transform(dense)
        names = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation",
                 "groups", "padding_mode", "output_padding", "transposed"]  # fmt: skip
        for name in names:
            assert getattr(small, name) == getattr(dense, name), name
        assert torch.equal(small.bias, dense.bias)
        assert small.weight.shape == dense.weight.shape
        plain = type(dense).__mro__[0]
        assert all(type(stage) is plain for stage in small)


@pytest.mark.parametrize("cls", [nn.Conv1d, nn.ConvTranspose2d, nn.Conv3d])
def test_depthwise_is_left_with_the_reason(cls):
    model = nn.Sequential(cls(8, 16, 3, groups=8), nn.Linear(16, 16))
    compressor = exact()
    small = compressor.fit_transform(model)
    assert type(small[0]) is cls
    assert "depthwise" in compressor.plan_["0"].reason


def test_one_input_channel_is_not_depthwise():
    dense = build(nn.Conv2d, 1, 24, 5)
    check(dense, exact(), images(dense, 2))


@pytest.mark.parametrize("method", ["forward", "_conv_forward"])
def test_subclass_that_computes_something_else_is_left_with_the_reason(method):
    def other(self, *arguments):
        return getattr(nn.Conv2d, method)(self, *arguments) * 2

    cls = type("Twice", (nn.Conv2d,), {method: other})
    compressor = exact()
    compressor.fit(nn.Sequential(cls(8, 12, 3), nn.Linear(16, 16)))
    assert compressor.plan_["0"].reason == f"Twice rewrites {method} of Conv2d"


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("norm", [weight_norm, parametrizations.weight_norm])
@pytest.mark.parametrize("transposed", [False, True])
def test_weight_norm(norm, transposed):
    cls = nn.ConvTranspose1d if transposed else nn.Conv1d
    dense = norm(build(cls, 8, 12, 5, groups=2), dim=2)
    small = exact().fit_transform(dense)
    x = images(dense, 1)
    assert isinstance(small, FactorizedConv)
    assert distance(small(x), dense(x)) < 1e-12


def test_tied_convolutions_with_other_settings_share_their_factors():
    first = build(nn.Conv2d, 12, 12, 3, padding=1)
    second = build(nn.Conv2d, 12, 12, 3, stride=2, bias=False)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    compressor = exact()
    small = compressor.fit_transform(model)
    assert [s.weight is t.weight for s, t in zip(*small, strict=True)] == [True, True]
    assert count_parameters(small) == compressor.n_parameters_out_
    x = images(first, 2)
    assert distance(small(x), model(x)) < 1e-12
    back = compressor.inverse_transform(small)
    assert back[0].weight is back[1].weight
    assert distance(back(x), model(x)) < 1e-12


def test_tied_convolutions_of_other_groups_are_left_with_the_reason():
    model = nn.ModuleList([build(nn.Conv1d, 6, 12, 3), build(nn.Conv1d, 12, 12, 3, groups=2)])
    model[1].weight = model[0].weight  # (12, 6, 3) for both
    model.append(nn.Linear(16, 16))
    compressor = exact()
    small = compressor.fit_transform(model)
    assert "which read it as different shapes" in compressor.plan_["0"].reason
    assert "which read it as different shapes" in compressor.plan_["1"].reason
    assert small[0].weight is small[1].weight
    assert count_parameters(small) == compressor.n_parameters_out_


def test_tied_transposed_convolutions_are_left_with_the_reason():
    model = nn.Sequential(build(nn.ConvTranspose1d, 8, 8, 3), build(nn.ConvTranspose1d, 8, 8, 3))
    model[1].weight = model[0].weight
    model.append(nn.Linear(16, 16, dtype=torch.float64))
    compressor = exact()
    small = compressor.fit_transform(model)
    assert "shares its weight among 0, 1" in compressor.plan_["0"].reason
    assert "shares its weight among 0, 1" in compressor.plan_["1"].reason
    assert small[0].weight is small[1].weight
    assert count_parameters(small) == compressor.n_parameters_out_


def test_channels_last_weights():
    dense = build(nn.Conv2d, 8, 12, 3).to(memory_format=torch.channels_last)
    x = images(dense, 2).contiguous(memory_format=torch.channels_last)
    check(copy.deepcopy(dense), exact(), x)
