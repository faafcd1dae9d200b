"""Layers with a sparse term, against the dense layer that has their weight, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from models import check_all_is_in_the_state, distance, layer, random, seeded
from torch import nn

from skcompress import LowRankCompressor, Pruner, count_bytes, count_parameters
from skcompress.decompositions.low_rank_sparse import LowRankSparse
from skcompress.layers import densify
from skcompress.layers.chain import empty_factors, merge_groups, merge_stages
from skcompress.layers.sparse import SparseTerm
from skcompress.protocols import Factors, Sparse
from skcompress.protocols.product import multiply_out


def conv(cls=nn.Conv2d, *arguments, **settings):
    arguments = arguments or (8, 12, 3)
    return seeded(lambda: cls(*arguments, **settings, dtype=torch.float64)).eval()


def small_of(dense, rank=2, density=0.2, **settings):
    compressor = LowRankCompressor(LowRankSparse(density=density), rank=rank, **settings)
    return compressor.fit_transform(dense)


def terms(model):
    return [module for module in model.modules() if isinstance(module, SparseTerm)]


CONVOLUTIONS = [
    conv(nn.Conv2d, 8, 12, 3, padding=1, stride=2),
    conv(nn.Conv2d, 16, 12, 3, groups=2, padding=2, padding_mode="reflect"),
    conv(nn.Conv2d, 8, 12, 3, padding="same", padding_mode="circular", bias=False),
    conv(nn.Conv2d, 8, 12, (1, 3), stride=(2, 1), padding=(0, 1)),
    conv(nn.Conv1d, 8, 12, 5, dilation=2, padding="same"),
    conv(nn.Conv3d, 6, 8, (1, 2, 3), stride=(2, 1, 2)),
    conv(nn.ConvTranspose2d, 8, 12, 3, stride=2, output_padding=1),
    conv(nn.ConvTranspose2d, 16, 12, 3, groups=2, stride=2),
    conv(nn.ConvTranspose1d, 8, 12, 4, stride=3, padding=1),
    conv(nn.ConvTranspose3d, 6, 8, (1, 2, 3), stride=(2, 1, 2)),
]


@pytest.mark.parametrize("pivot", [False, True])
@pytest.mark.parametrize("dense", CONVOLUTIONS, ids=repr)
def test_convolutions_are_those_of_their_weight(dense, pivot):
    small = small_of(dense, pivot=pivot)
    (term,) = terms(small)
    assert term.weight.shape == dense.weight.shape
    expected = dense.groups * round(0.2 * dense.weight.numel() / dense.groups)
    assert torch.count_nonzero(term.weight) == len(term.values) == expected
    reference = copy.deepcopy(dense)
    with torch.no_grad():
        reference.weight.copy_(small.weight)
    x = random(2, dense.in_channels, 9, 8, 7)[(..., *[0] * (5 - dense.weight.dim()))]
    for inputs in (x, x[0]):
        assert distance(small(inputs), reference(inputs)) < 1e-12
    back = densify(small)
    assert type(back) is type(dense)
    assert distance(back(x), small(x)) < 1e-12
    assert distance(small.weight, dense.weight) < 0.9  # and not any weight whatever


def test_output_size_of_transposed_convolutions():
    dense = conv(nn.ConvTranspose2d, 8, 12, (1, 3), stride=2)
    small = small_of(dense)
    x, size = random(2, 8, 5, 5), [2, 12, 10, 12]
    assert small(x, size).shape[-2:] == dense(x, size).shape[-2:] == (10, 12)
    assert distance(densify(small)(x, size), small(x, size)) < 1e-12


@pytest.mark.parametrize("name", ["linear", "conv1d of transformers", "attention", "lstm"])
def test_other_kinds(name):
    dense, arguments = layer(name)
    small = small_of(dense, rank=1)
    assert terms(small)
    for attribute in ("in_features", "out_features", "nx", "nf"):
        if hasattr(dense, attribute):
            assert getattr(small, attribute) == getattr(dense, attribute)
    inputs = arguments(torch.float64) if callable(arguments) else arguments
    assert distance(densify(small)(*inputs), small(*inputs)) < 1e-10


@pytest.mark.parametrize("name", ["embedding", "experts"])
def test_kinds_that_take_no_sparse_term_say_so(name):
    dense, _ = layer(name)
    model = nn.Sequential(dense, conv(nn.Linear, 20, 20))
    fitted = LowRankCompressor(["low_rank_sparse", "svd"], rank=1).fit(model)
    assert {p.scheme for p in fitted.plan_ if p.name.startswith("0")} == {"output"}
    alone = LowRankCompressor("low_rank_sparse", rank=1).fit(model)
    reasons = {p.reason for p in alone.plan_ if p.name.startswith("0")}
    assert reasons == {"layers of this kind take no sparse term"}
    assert terms(alone.transform(model))


def test_everything_is_trained():
    small = small_of(conv()).train()
    (term,) = terms(small)
    x = random(2, 8, 6, 6)
    small(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in small.parameters())
    # The gradient of a dense weight, at the positions that there are.
    weight = small.weight.detach().requires_grad_()
    (nn.functional.conv2d(x, weight, small.bias)).square().sum().backward()
    assert distance(term.values.grad, weight.grad.flatten()[term.positions.long()]) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    dense = nn.Sequential(conv(), nn.Flatten(), conv(nn.Linear, 12 * 36, 20)).to(dtype)
    small = small_of(dense)
    x = random(2, 8, 8, 8).to(dtype)
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert {b.dtype for b in small.buffers()} == {torch.int32}
    exact = copy.deepcopy(small).double()(x.double())
    assert small(x).dtype == dtype
    assert distance(small(x).double(), exact) < 0.02


def test_autocast_gives_the_dtype_that_plain_layers_give():
    small = small_of(nn.Sequential(conv(), nn.Flatten(), conv(nn.Linear, 12 * 36, 20)).float())
    with torch.autocast("cpu", torch.bfloat16):
        assert small(random(2, 8, 8, 8, dtype=torch.float32)).dtype == torch.bfloat16


def test_positions_are_in_the_state():
    one, other = small_of(conv()), small_of(conv(nn.Conv2d, 8, 12, 3).requires_grad_(False))
    for part in terms(other):
        part.positions.zero_()
    check_all_is_in_the_state(one, other, random(2, 8, 6, 6))


def test_is_exported_and_compiled():
    small = small_of(nn.Sequential(conv(), nn.Flatten(), conv(nn.Linear, 12 * 16, 20)))
    x = random(2, 8, 6, 6)
    program = torch.export.export(small, (x,))
    assert distance(program.module()(x), small(x)) < 1e-12
    compiled = torch.compile(small, backend="eager", fullgraph=True)
    assert distance(compiled(x), small(x)) < 1e-12


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors(layout):
    small = small_of(conv(nn.Linear, 9, 14))
    sequences = [random(length, 9, seed=length) for length in (3, 1, 5)]
    result = small(torch.nested.as_nested_tensor(sequences, layout=layout))
    assert result.layout == layout
    for ours, x in zip(result.unbind(), sequences, strict=True):
        assert distance(ours, small(x)) < 1e-12


def test_tied_layers_share_what_is_stored():
    model = nn.Sequential(*(seeded(lambda: nn.Linear(16, 16), seed) for seed in (0, 1)))
    model[1].weight = model[0].weight
    compressor = LowRankCompressor("low_rank_sparse", rank=4)
    small = compressor.fit_transform(model)
    first, second = terms(small)
    assert first.values is second.values
    assert count_parameters(small) == compressor.n_parameters_out_
    back = compressor.inverse_transform(small)
    assert back[0].weight is back[1].weight


def test_bytes_are_counted_apart():
    dense = conv().float()
    small = small_of(dense)
    n_kept = round(0.2 * dense.weight.numel())
    assert count_bytes(small) == 4 * count_parameters(small) + 4 * n_kept


def test_pruning_goes_on_in_the_factors_and_says_why_not_in_the_term():
    small = small_of(nn.Sequential(conv().float()))
    x = random(4, 8, 6, 6, dtype=torch.float32)
    pruner = Pruner("wanda", sparsity=0.5).fit(small, x)
    rows = {row.name: row for row in pruner.plan_}
    assert rows["0.sparse"].reason == "a sparse term, of which no zeros are stored"
    assert rows["0.0"].nonzeros[1] < rows["0.0"].nonzeros[0]
    pruned = pruner.transform(small)
    assert torch.equal(terms(pruned)[0].values, terms(small)[0].values)


def sparse(shape, n, seed=0):
    kept = torch.zeros(shape, dtype=torch.bool)
    kept.flatten()[
        torch.randperm(kept.numel(), generator=torch.Generator().manual_seed(seed))[:n]
    ] = 1
    return Sparse.of(random(*shape, seed=seed + 5), kept)


def test_groups_are_laid_one_after_another():
    parts = [
        Factors((random(2, 5, 3, seed=s), random(4, 2, 1, seed=s + 9)), (1, 1),
                sparse=sparse((4, 5, 3), 7, seed=s))
        for s in range(3)
    ]  # fmt: skip
    merged = merge_groups(parts)
    assert merged.stages == merge_stages(parts[0].stages, 3)
    assert empty_factors(merged.stages, torch.float64, "meta").stages == merged.stages
    reference = torch.cat([multiply_out(part) for part in parts])
    assert distance(multiply_out(merged, 3), reference) < 1e-13
    assert merge_groups(parts[:1]) is parts[0]


def test_stored_tensors_are_exchanged():
    factors = Factors((random(2, 5), random(4, 2)), (1, 1), sparse=sparse((4, 5), 6))
    assert [tuple(t.shape) for t in factors.stored] == [s.shape for s in factors.stages]
    twice = factors.holding([2 * t for t in factors.stored])
    product = factors.tensors[1] @ factors.tensors[0]
    assert distance(multiply_out(twice), 4 * product + 2 * factors.sparse.weight) < 1e-13
