"""Whole networks: smaller, the same function, trainable, and every way to store and copy them."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, transformers
from models import RANK, distance, factorized, low_rank_, seeded
from torch import Tensor, nn

from skcompress import SVDCompressor, TuckerCompressor, count_parameters
from skcompress.layers import Factorized, kind_of

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")

# Weights that stay dense whatever the rank, by a part of their reason.
NEVER_COMPRESSED = {
    "bert": {"vectors only"},
    "llama": {"vectors only"},
    "gpt2": {"vectors only"},
    "vit": {"vectors only", "used by its own forward"},
    "convnext": {"vectors only", "depthwise"},
    "mobilenet": {"vectors only", "depthwise"},
    "conv_lstm": set(),
    "autoencoder": set(),
}


@pytest.fixture(params=list(ARCHITECTURES))
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def _networks() -> dict[tuple[str, bool], tuple[nn.Module, dict[str, Any]]]:
    return {}


def _build(name: str, low_rank: bool) -> tuple[nn.Module, dict[str, Any]]:
    model, inputs = seeded(ARCHITECTURES[name])
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases of zero would hide what happens to them
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return (low_rank_(model) if low_rank else model).eval(), inputs


@pytest.fixture
def network(name, _networks) -> tuple[nn.Module, dict[str, Any]]:
    """A network with random weights; tests leave it as it is."""
    if (name, False) not in _networks:
        _networks[name, False] = _build(name, low_rank=False)
    return _networks[name, False]


@pytest.fixture
def low_rank(name, _networks) -> tuple[nn.Module, dict[str, Any]]:
    """The same with weights of rank `RANK`, which compressors lose nothing of."""
    if (name, True) not in _networks:
        _networks[name, True] = _build(name, low_rank=True)
    return _networks[name, True]


def outputs(model: nn.Module, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Every floating tensor that a model returns."""
    with torch.no_grad():
        return _tensors(model(**inputs))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def test_half_of_the_parameters(network):
    model, inputs = network
    state = {key: value.clone() for key, value in model.state_dict().items()}
    before = count_parameters(model)
    compressor = SVDCompressor(rank=0.5)
    small = compressor.fit_transform(model)
    assert compressor.n_parameters_in_ == before
    assert 0.47 * before < count_parameters(small) <= 0.5 * before
    assert count_parameters(small) == compressor.n_parameters_out_
    results, expected = outputs(small, inputs), outputs(model, inputs)
    assert [r.shape for r in results] == [e.shape for e in expected]
    assert all(torch.isfinite(r).all() for r in results)
    assert distance(results[0], expected[0]) > 1e-4  # something was cut
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_everything_is_kept_at_rank_one(network):
    model, inputs = network
    compressor = SVDCompressor(rank=1.0)
    same = compressor.fit_transform(model)
    assert count_parameters(same) == compressor.n_parameters_out_ == count_parameters(model)
    assert distance(outputs(same, inputs), outputs(model, inputs)) == 0.0


def test_every_layer_is_compressed_or_left_with_a_reason(name, network):
    model, _ = network
    compressor = SVDCompressor(rank=0.9).fit(model)
    rows = list(compressor.plan_)
    reported = [other for row in rows for other in (row.name, *row.shared_with)]
    assert len(set(reported)) == len(reported)
    covered: set[nn.Module] = set()
    for row in reported:
        module = _module_of(model, row)
        covered.update(module.modules() if kind_of(module) else [module])
    owners = {m for m in model.modules() if list(m.parameters(recurse=False))}
    assert owners <= covered
    reasons = {row.reason for row in rows if row.reason and row.scheme is None}
    lasting = {r for r in reasons if "dense" not in r and "smaller" not in r}
    if name in NEVER_COMPRESSED:
        expected = NEVER_COMPRESSED[name]
        assert all(any(part in reason for part in expected) for reason in lasting)
        assert all(any(part in reason for reason in lasting) for part in expected)


def _module_of(model: nn.Module, row: str) -> nn.Module:
    """The module of a row of the report, which may be about one of several weights."""
    modules = dict(model.named_modules(remove_duplicate=False))
    name = "" if row == "(model)" else row
    return modules[name] if name in modules else modules[name.rpartition(".")[0]]


COMPRESSORS = {
    "svd": SVDCompressor(rank=RANK),
    "svd, pivoted": SVDCompressor(rank=RANK, pivot=True),
    "tucker": TuckerCompressor(rank=RANK),
}


@pytest.mark.parametrize("compressor", COMPRESSORS.values(), ids=COMPRESSORS.keys())
def test_stand_ins_compute_what_the_layers_did(low_rank, compressor):
    model, inputs = low_rank
    small = compressor.fit_transform(model)
    rows = [row for row in compressor.plan_ if row.reason is None]
    assert len(rows) >= 2
    assert max(row.error for row in rows) < 1e-5
    assert factorized(small)
    assert count_parameters(small) == compressor.n_parameters_out_ < count_parameters(model)
    expected = outputs(model, inputs)
    assert distance(outputs(small, inputs), expected) < 1e-4

    back = compressor.inverse_transform(small)
    assert distance(outputs(back, inputs), expected) < 1e-4
    assert not any(isinstance(module, Factorized) for module in back.modules())
    assert _classes(back) == _classes(model)
    assert count_parameters(back) == count_parameters(model) - _norms(model) + _norms(back)


def _classes(model: nn.Module) -> list[tuple[str, str]]:
    """Modules by name and class; those under a parametrization are what they were before."""
    return [
        (key, type(module).__name__.removeprefix("Parametrized"))
        for key, module in model.named_modules()
        if "parametrizations" not in key
    ]


def _norms(model: nn.Module) -> int:
    """Numbers that weight norms store beside the weights that they compute."""
    return sum(p.numel() for n, p in model.named_parameters() if n.endswith("original0"))


def test_trains(low_rank):
    model, inputs = low_rank
    small = SVDCompressor(rank=RANK).fit_transform(model).train()
    results = seeded(lambda: _tensors(small(**inputs)))
    sum(result.float().square().mean() for result in results).backward()
    for name_, stand_in in factorized(small).items():
        for key, parameter in stand_in.named_parameters():
            assert parameter.grad is not None, (name_, key)
            assert torch.isfinite(parameter.grad).all(), (name_, key)
    reached = [p.grad.abs().sum() > 0 for p in small.parameters() if p.grad is not None]
    assert sum(reached) > 0.7 * len(reached)
    assert all(p.grad is None for p in model.parameters())


def test_survives_copies(name, low_rank):
    model, inputs = low_rank
    small = SVDCompressor(rank=RANK).fit_transform(model)
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    expected = outputs(small, inputs)
    for other in (
        copy.deepcopy(small),
        pickle.loads(pickle.dumps(small)),
        torch.load(file, weights_only=False),
    ):
        assert count_parameters(other) == count_parameters(small)
        assert distance(outputs(other, inputs), expected) == 0.0


def test_state_fits_into_the_structure_of_a_model_on_the_meta_device(name, low_rank):
    model, inputs = low_rank
    compressor = SVDCompressor(rank=RANK)
    small = compressor.fit_transform(model)
    with torch.device("meta"):
        hollow, _ = ARCHITECTURES[name]()
    structure = compressor.transform(hollow.eval())
    assert all(p.is_meta for p in structure.parameters())
    assert [(n, p.shape, p.dtype) for n, p in structure.named_parameters()] == [
        (n, p.shape, p.dtype) for n, p in small.named_parameters()
    ]
    structure.load_state_dict(small.state_dict(), assign=True)
    # Buffers that are no part of the state, as positions are, have to come from somewhere.
    for key, buffer in small.named_buffers():
        owner, _, leaf = key.rpartition(".")
        structure.get_submodule(owner)._buffers[leaf] = buffer
    assert distance(outputs(structure, inputs), outputs(small, inputs)) < 1e-6


def test_a_later_checkpoint_takes_the_plan(name, low_rank):
    model, inputs = low_rank
    compressor = SVDCompressor(rank=RANK).fit(model)
    later = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in later.parameters():
            parameter.mul_(0.9)
    small = compressor.transform(later)
    assert count_parameters(small) == compressor.n_parameters_out_
    assert distance(outputs(small, inputs), outputs(later, inputs)) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(network, dtype):
    model, inputs = network
    model = low_rank_(copy.deepcopy(model).to(dtype))
    if isinstance(model, transformers.PreTrainedModel):
        model.config._experts_implementation = "eager"  # the default takes no float64
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}
    small = SVDCompressor(rank=RANK).fit_transform(model)
    assert {p.dtype for p in small.parameters()} == {dtype}
    results, expected = outputs(small, inputs), outputs(model, inputs)
    assert [r.dtype for r in results] == [e.dtype for e in expected]
    if dtype == torch.float64:
        assert distance(results, expected) < 1e-9
    else:
        assert all(torch.isfinite(r).all() for r in results)


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_generates_the_same_text(low_rank):
    model, inputs = low_rank
    small = SVDCompressor(rank=RANK).fit_transform(model)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    texts = [m.generate(inputs["input_ids"], **options) for m in (small, model)]
    assert torch.equal(*texts)
