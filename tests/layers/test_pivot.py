"""Layers of which a part is an identity that is not stored."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from models import check_all_is_in_the_state, distance, layer, random, seeded
from torch import nn

from skcompress import LowRankCompressor, SVDCompressor, TuckerCompressor, count_parameters
from skcompress.decompositions.svd import SVD
from skcompress.layers.linear import FactorizedLinear
from skcompress.layers.pivot import PivotedColumns, PivotedFactor, PivotedRows
from skcompress.protocols import Factors
from skcompress.protocols.product import multiply_out
from skcompress.storages.pivot import pivoted_factors

SCHEMES = ["output", "input", "tucker"]
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


def compressor(scheme, pivot, rank=3):
    if scheme == "tucker":
        return TuckerCompressor(rank=rank, pivot=pivot)
    return SVDCompressor(rank=rank, scheme=scheme, pivot=pivot)


def both(dense, scheme, rank=3):
    return [compressor(scheme, pivot, rank).fit_transform(dense) for pivot in (False, True)]


def pivoted_parts(model):
    return [type(m) for m in model.modules() if isinstance(m, PivotedFactor)]


def conv(cls=nn.Conv2d, *arguments, **settings):
    arguments = arguments or (8, 12, 3)
    return seeded(lambda: cls(*arguments, **settings, dtype=torch.float64)).eval()


@every_scheme
@pytest.mark.parametrize(
    "dense",
    [
        conv(nn.Conv2d, 8, 12, 3, padding=1, stride=2),
        conv(nn.Conv2d, 16, 12, 3, groups=2, padding=2, padding_mode="reflect"),
        conv(nn.Conv2d, 8, 12, (1, 3), stride=(2, 1), padding=(0, 1)),
        conv(nn.Conv2d, 8, 12, (3, 1), stride=2, padding="valid", bias=False),
        conv(nn.Conv1d, 8, 12, 5, dilation=2),
        conv(nn.Conv3d, 6, 8, (1, 2, 3), stride=(2, 1, 2)),
        conv(nn.ConvTranspose2d, 8, 12, 3, stride=2, output_padding=1),
        conv(nn.ConvTranspose2d, 16, 12, 3, groups=2, stride=2),
        conv(nn.ConvTranspose2d, 8, 12, (1, 3), stride=(2, 1)),
        conv(nn.ConvTranspose1d, 8, 12, 4, stride=3),
    ],
    ids=repr,
)
def test_truncated_convolutions_compute_what_plain_ones_do(dense, scheme):
    plain, pivoted = both(dense, scheme)
    expected = {"output": [PivotedRows], "input": [PivotedColumns],
                "tucker": [PivotedColumns, PivotedRows]}[scheme]  # fmt: skip
    assert pivoted_parts(pivoted) == expected
    assert count_parameters(pivoted) < count_parameters(plain)
    x = random(2, dense.in_channels, 9, 8, 7)[(..., *[0] * (5 - dense.weight.dim()))]
    for inputs in (x, x[0]):
        assert distance(pivoted(inputs), plain(inputs)) < 1e-12
    assert distance(pivoted.weight, plain.weight) < 1e-12
    back = compressor(scheme, True).inverse_transform(pivoted)
    assert type(back) is type(dense)
    assert distance(back(x), plain(x)) < 1e-12


@every_scheme
def test_output_size_of_transposed_convolutions(scheme):
    dense = conv(nn.ConvTranspose2d, 8, 12, (1, 3), stride=2)
    plain, pivoted = both(dense, scheme)
    x = random(2, 8, 5, 5)
    size = [2, 12, 10, 12]
    assert dense(x, size).shape[-2:] == (10, 12)
    assert distance(pivoted(x, size), plain(x, size)) < 1e-12


@pytest.mark.parametrize("name", ["linear", "conv1d of transformers", "attention", "lstm"])
def test_answers_as_the_original(name):
    dense, _ = layer(name)
    small = SVDCompressor(rank=2, pivot=True).fit_transform(dense)
    assert pivoted_parts(small)
    for attribute in ("in_features", "out_features", "nx", "nf", "weight", "bias",
                      "in_proj_weight", "weight_ih_l0"):  # fmt: skip
        if hasattr(dense, attribute):
            ours, theirs = getattr(small, attribute), getattr(dense, attribute)
            assert (ours is None) == (theirs is None)
            if isinstance(theirs, torch.Tensor):
                assert distance(ours, theirs) < 1e-12, attribute
            else:
                assert ours == theirs, attribute


@pytest.mark.parametrize("name", ["embedding", "experts"])
def test_kinds_that_take_no_pivots_are_stored_as_ever(name):
    dense, _ = layer(name)
    fitted = SVDCompressor(rank=2, pivot=True).fit(dense)
    assert not pivoted_parts(fitted.transform(dense))
    assert {p.scheme for p in fitted.plan_} == {"output"}


def test_a_head_that_is_tied_to_an_embedding_is_stored_as_ever():
    model = nn.Sequential(nn.Embedding(30, 12), nn.Linear(12, 30, bias=False), nn.Linear(30, 20))
    model[1].weight = model[0].weight
    fitted = SVDCompressor(rank=3, pivot=True)
    small = fitted.fit_transform(model)
    assert [p.scheme for p in fitted.plan_] == ["output", "output, pivoted"]
    assert count_parameters(small) == fitted.n_parameters_out_
    tokens = torch.tensor([1, 29])
    assert small(tokens).shape == (2, 20)


def test_tied_layers_share_what_is_stored():
    model = nn.Sequential(*(seeded(lambda: nn.Linear(16, 16), seed) for seed in (0, 1)))
    model[1].weight = model[0].weight
    fitted = SVDCompressor(rank=4, pivot=True)
    small = fitted.fit_transform(model)
    assert small[0][0].weight is small[1][0].weight
    assert small[0][1].layer.weight is small[1][1].layer.weight
    assert count_parameters(small) == fitted.n_parameters_out_
    x = random(3, 16, dtype=torch.float32)
    plain = SVDCompressor(rank=4).fit_transform(model)
    assert distance(small(x), plain(x)) < 1e-5
    back = fitted.inverse_transform(small)
    assert back[0].weight is back[1].weight


@pytest.mark.parametrize("shape", [(1, 9), (9, 1), (5, 5), (2, 3)])
def test_thin_layers(shape):
    inputs, outputs = shape
    dense = seeded(lambda: nn.Sequential(nn.Linear(inputs, outputs), nn.Linear(outputs, 8)))
    fitted = SVDCompressor(rank=1, pivot=True)
    small = fitted.fit_transform(dense)
    assert count_parameters(small) == fitted.n_parameters_out_ <= count_parameters(dense)
    assert small(torch.zeros(2, inputs)).shape == (2, 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_scheme
def test_half_precision(dtype, scheme):
    dense = nn.Sequential(conv(), nn.Flatten(), conv(nn.Linear, 12 * 36, 20)).to(dtype)
    plain, pivoted = both(dense, scheme)
    x = random(2, 8, 8, 8).to(dtype)
    assert {p.dtype for p in pivoted.parameters()} == {dtype}
    assert {b.dtype for b in pivoted.buffers()} == {torch.int64}
    exact = copy.deepcopy(plain).double()(x.double())
    assert pivoted(x).dtype == dtype
    lost = [distance(m(x).double(), exact) for m in (plain, pivoted)]
    assert lost[1] < 5 * lost[0]
    converted = both(dense.double(), scheme)[1].to(dtype)
    assert distance(converted(x).double(), exact) < 5 * lost[0]


@every_scheme
def test_autocast_gives_the_dtype_that_plain_layers_give(scheme):
    dense = nn.Sequential(conv(), nn.Flatten(), conv(nn.Linear, 12 * 36, 20)).float()
    plain, pivoted = both(dense, scheme)
    x = random(2, 8, 8, 8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert pivoted(x).dtype == plain(x).dtype == torch.bfloat16


@every_scheme
def test_indices_are_in_the_state(scheme):
    dense = conv()
    one = compressor(scheme, True).fit_transform(dense)
    other = compressor(scheme, True).fit_transform(conv(nn.Conv2d, 8, 12, 3).requires_grad_(False))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    for part in other.modules():
        if isinstance(part, PivotedFactor):
            part.index = torch.arange(len(part.index))
    check_all_is_in_the_state(one, other, random(2, 8, 6, 6))


@every_scheme
def test_is_exported_and_compiled(scheme):
    dense = nn.Sequential(conv(), nn.Flatten(), conv(nn.Linear, 12 * 16, 20))
    small = compressor(scheme, True).fit_transform(dense)
    x = random(2, 8, 6, 6)
    program = torch.export.export(small, (x,))
    assert distance(program.module()(x), small(x)) < 1e-12
    compiled = torch.compile(small, backend="eager", fullgraph=True)
    assert distance(compiled(x), small(x)) < 1e-12


def test_factors_are_stored_as_they_are_where_layers_take_no_pivots():
    model = nn.Sequential(nn.Embedding(30, 12), nn.Linear(12, 20))
    fitted = LowRankCompressor(decomposition=SVD(), pivot=True, rank=3).fit(model)
    assert [p.scheme for p in fitted.plan_] == ["output", "output, pivoted"]


def test_chain_of_three_matrices_leaves_both_ends_out():
    chain = Factors((random(4, 9), random(5, 4, seed=2), random(8, 5, seed=3)), (1, 1, 1))
    pivoted = pivoted_factors(chain)
    parameters = tuple(nn.Parameter(t) for t in pivoted.tensors)
    bias = nn.Parameter(random(8, seed=4))
    small = FactorizedLinear.from_factors(replace(pivoted, tensors=parameters), bias)
    assert pivoted_parts(small) == [PivotedColumns, PivotedRows]
    assert (small.in_features, small.out_features) == (9, 8)
    assert count_parameters(small) == 4 * 5 + 4 * 5 + 3 * 5 + 8
    x = random(3, 9, seed=5)
    assert distance(small(x), x @ multiply_out(chain).mT + bias) < 1e-13


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors(layout):
    plain, pivoted = both(conv(nn.Linear, 9, 14), "output")
    sequences = [random(length, 9, seed=length) for length in (3, 1, 5)]
    nested = torch.nested.as_nested_tensor(sequences, layout=layout)
    result = pivoted(nested)
    assert result.layout == layout
    for ours, x in zip(result.unbind(), sequences, strict=True):
        assert distance(ours, plain(x)) < 1e-12
