"""`compress_checkpoint` gives the tensors that `fit_transform` gives, one weight at a time."""

from __future__ import annotations

import json

import pytest
import torch
from architectures import ARCHITECTURES
from models import LAYERS, layer, seeded
from safetensors.torch import load_file, save_file
from streaming_cases import RANK, check_same, contents, read, saved
from torch import nn

from skcompress import (
    LowRankCompressor,
    MagnitudePruner,
    SVDCompressor,
    TuckerCompressor,
    compress_checkpoint,
    load,
)
from skcompress.checkpoint.streaming import estimate_checkpoint
from skcompress.checkpoint.streaming_layers import OTHER_FORM
from skcompress.errors import (
    BudgetError,
    CheckpointArchitectureError,
    CheckpointCompressorError,
    CheckpointExistsError,
    CheckpointMismatchError,
    CheckpointPlaceError,
    CheckpointSourceError,
    MissingDataError,
    ModelTypeError,
    NonFiniteWeightError,
    SelectionError,
)

OF_TRANSFORMERS = ["bert", "gpt2", "llama", "t5", "vit"]
EXPERTS = ["mixtral", "qwen_moe"]
COMPRESSORS = {
    "svd": SVDCompressor(RANK),
    "pivot": SVDCompressor(RANK, pivot=True),
    "tucker": TuckerCompressor(RANK),
    "low rank and sparse": LowRankCompressor("low_rank_sparse", RANK),
    "uniform": SVDCompressor(RANK, allocation="uniform"),
    "automatic": SVDCompressor("auto"),
    "one rank": SVDCompressor(3, exclude="1"),
    "patterns": SVDCompressor({"0": 0.5, nn.Linear: 2}),
}


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3),
        nn.BatchNorm2d(12),
        nn.Conv2d(12, 16, 3),
        nn.Flatten(),
        nn.Linear(64, 20),
    )


@pytest.fixture
def large(tmp_path):
    return saved(seeded(network), tmp_path / "large.safetensors")


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_of_transformers(name, dtype, tmp_path):
    model = seeded(lambda: ARCHITECTURES[name]()[0]).to(dtype).eval()
    source, destination = tmp_path / "in", tmp_path / "out"
    model.save_pretrained(source, max_shard_size="20KB")
    compressor = SVDCompressor(0.8)
    report = compress_checkpoint(source, destination, compressor, max_shard_size=20_000)
    check_same(destination, compressor.fit_transform(model))
    assert report.layers.plan == compressor.plan_
    assert report.layers.n_parameters_out == compressor.n_parameters_out_
    index = json.loads((destination / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() >= read(destination)[0].keys()
    assert len(set(index["weight_map"].values())) > 1
    ours, given = (json.loads((f / "config.json").read_text()) for f in (destination, source))
    assert {k: v for k, v in ours.items() if k != "quantization_config"} == given
    again, loading = type(model).from_pretrained(destination, output_loading_info=True)
    assert not any(loading.values())
    check_same(destination, again)
    check_same(destination, load(destination, lambda: ARCHITECTURES[name]()[0]))
    assert [type(m) for m in again.modules()] == [
        type(m) for m in compressor.transform(model).modules()
    ]


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_that_files_hold_one_by_one_stay_and_are_listed(name, tmp_path):
    model = seeded(lambda: ARCHITECTURES[name]()[0]).eval()
    model.save_pretrained(tmp_path / "in")
    report = compress_checkpoint(tmp_path / "in", tmp_path / "out", SVDCompressor(0.8))
    before, after = load_file(tmp_path / "in/model.safetensors"), read(tmp_path / "out")[0]
    assert any("experts" in tensor for tensor in report.copied)
    assert all(torch.equal(before[tensor], after[tensor]) for tensor in report.copied)
    experts = [p for p in report.layers.plan if ".experts" in p.name]
    assert experts
    assert {p.reason for p in experts} == {OTHER_FORM}
    assert any(p.rank is not None for p in report.layers.plan)
    again, loading = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values())
    kept = model.state_dict()
    names = [name for name in again.state_dict() if ".experts" in name]
    assert names
    assert all(torch.equal(again.state_dict()[name], kept[name]) for name in names)


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_in_one_tensor_are_compressed(name, tmp_path):
    model = seeded(lambda: ARCHITECTURES[name]()[0]).eval()
    source = saved(model, tmp_path / "in.safetensors")
    compressor, destination = SVDCompressor(RANK), tmp_path / "out.safetensors"
    compress_checkpoint(source, destination, compressor, model=model)
    check_same(destination, compressor.fit_transform(model))
    assert any(".experts" in name for name in compressor.ranks_)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_every_kind_of_layer(name, dtype, tmp_path):
    model = nn.ModuleDict({"a": layer(name, dtype)[0], "b": nn.LayerNorm(3, dtype=dtype)})
    source = saved(model, tmp_path / "in.safetensors")
    compressor, destination = SVDCompressor(1), tmp_path / "out.safetensors"
    compress_checkpoint(source, destination, compressor, model=lambda: model)
    check_same(destination, compressor.fit_transform(model))


@pytest.mark.parametrize("name", COMPRESSORS)
def test_every_way_of_compressing(name, large, tmp_path):
    compressor, destination = COMPRESSORS[name], tmp_path / "small.safetensors"
    report = compress_checkpoint(large, destination, compressor, model=network)
    small = compressor.fit_transform(seeded(network))
    check_same(destination, small)
    assert report.layers.n_parameters_out == sum(p.numel() for p in small.parameters())
    assert "s per GB" in str(report)


def test_weights_that_layers_share_and_networks_that_are_one_layer(tmp_path):
    def tied():
        model = nn.ModuleDict(
            {"a": nn.ModuleDict({"in": nn.Embedding(40, 16)}), "b": nn.Linear(16, 16)}
        )
        model["a"]["out"] = nn.Linear(16, 40, bias=False)
        model["a"]["out"].weight = model["a"]["in"].weight
        return model

    for number, build in enumerate((tied, lambda: nn.Linear(30, 40))):
        model = seeded(build)
        source = saved(model, tmp_path / f"{number}.safetensors")
        compressor, destination = SVDCompressor(RANK), tmp_path / f"small{number}.safetensors"
        compress_checkpoint(source, destination, compressor, model=build)
        check_same(destination, compressor.fit_transform(model))


def test_files_of_unknown_networks_are_read_as_linear_layers(tmp_path):
    state = {
        "up.weight": torch.randn(40, 30), "up.bias": torch.randn(40), "scale": torch.ones(3),
        "word_embeddings.weight": torch.randn(40, 30), "mix.weight": torch.randn(4, 4, 3),
    }  # fmt: skip
    save_file(state, tmp_path / "in.safetensors")
    report = compress_checkpoint(
        tmp_path / "in.safetensors", tmp_path / "out.safetensors", SVDCompressor(4)
    )
    small = load_file(tmp_path / "out.safetensors")
    assert {p.name for p in report.layers.plan if p.rank} == {"up"}
    assert small.keys() - state.keys() == {"up.0.weight", "up.1.weight", "up.1.bias"}
    product = small["up.1.weight"] @ small["up.0.weight"]
    u, s, v = torch.linalg.svd(state["up.weight"])
    torch.testing.assert_close(product, u[:, :4] * s[:4] @ v[:4])
    assert torch.equal(small["word_embeddings.weight"], state["word_embeddings.weight"])


def test_the_input_stays_as_it_is_and_nothing_else_is_left(large, tmp_path):
    before = contents(tmp_path)
    random_state = torch.get_rng_state()
    compress_checkpoint(large, tmp_path / "s.safetensors", SVDCompressor(0.5), model=network)
    after = contents(tmp_path)
    assert after.keys() - before.keys() == {"s.safetensors"}
    assert all(after[name] == value for name, value in before.items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_an_estimate_comes_before_the_work(large, tmp_path, capsys):
    estimate = estimate_checkpoint(large, SVDCompressor(0.5), model=network)
    assert estimate.n_weights == 3
    assert estimate.seconds > 0
    compress_checkpoint(
        large, tmp_path / "s.safetensors", SVDCompressor(0.5), model=network, verbose=True
    )
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("3 weights in 0.00 GB: about")
    assert "values: 100%" in printed.err


def broken(tmp_path, what):
    path = tmp_path / "broken"
    path.mkdir()
    if what == "truncated":
        save_file({"a": torch.ones(9)}, path / "model.safetensors")
        with (path / "model.safetensors").open("r+b") as file:
            file.truncate(90)
    elif what == "pickled":
        (path / "pytorch_model.bin").touch()
    elif what == "two files":
        for name in ("x", "y"):
            save_file({name: torch.ones(9)}, path / f"{name}.safetensors")
    elif what == "index without map":
        (path / "model.safetensors.index.json").write_text("[]")
    elif what == "index elsewhere":
        index = {"weight_map": {"a": "../../etc/passwd"}}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    elif what == "shard missing":
        index = {"weight_map": {"a": "a.safetensors"}}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    elif what == "tensor missing":
        save_file({"x": torch.ones(9)}, path / "x.safetensors")
        index = {"weight_map": {"x": "x.safetensors", "a": "x.safetensors"}}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("truncated", "cannot be read"),
        ("pickled", "pickled"),
        ("two files", "x.safetensors, y.safetensors"),
        ("index without map", "no weight_map"),
        ("index elsewhere", "no weight_map"),
        ("shard missing", "a.safetensors"),
        ("tensor missing", "lists 'a'"),
        ("nothing", "no .safetensors file"),
    ],
)
def test_what_is_no_checkpoint_is_refused(what, said, tmp_path):
    with pytest.raises(CheckpointSourceError, match=said):
        compress_checkpoint(broken(tmp_path, what), tmp_path / "out", SVDCompressor())
    assert not (tmp_path / "out").exists()


def refused(error, said, large, destination, compressor=None, **keywords):
    keywords.setdefault("model", network)
    with pytest.raises(error, match=said):
        compress_checkpoint(large, destination, compressor or SVDCompressor(), **keywords)


def test_bad_arguments_are_refused_before_any_work(large, tmp_path):
    out = tmp_path / "out.safetensors"
    refused(CheckpointSourceError, "no such file", tmp_path / "missing", out)
    refused(CheckpointPlaceError, "is, holds or lies in", large, large)
    refused(CheckpointPlaceError, "is, holds or lies in", large, tmp_path)
    refused(CheckpointCompressorError, "low-rank", large, out, MagnitudePruner())
    refused(MissingDataError, "sequential", large, out, SVDCompressor(reconstruction="sequential"))
    refused(SelectionError, "matches no layer", large, out, SVDCompressor(layers="9"))
    refused(ModelTypeError, "int", large, out, model=3)
    refused(ModelTypeError, "NoneType", large, out, model=lambda: None)
    refused(BudgetError, "cannot be reached", large, out, SVDCompressor(0.001))
    wider = nn.Sequential(nn.Conv2d(4, 12, 3))
    refused(CheckpointMismatchError, "0.weight.*is of shape", large, out, model=wider)
    longer = nn.Sequential(*network(), nn.Linear(20, 2))
    refused(CheckpointMismatchError, "5.weight.*is missing", large, out, model=longer)
    shorter = network()[:-1]
    refused(CheckpointMismatchError, "4.bias.*has no such", large, out, model=shorter)
    assert not out.exists()


def test_weights_that_are_not_numbers_are_named(tmp_path):
    model = seeded(network)
    with torch.no_grad():
        model[2].weight[1, 2, 0, 1] = torch.nan
    source = saved(model, tmp_path / "nan.safetensors")
    refused(NonFiniteWeightError, "'2' has 1 NaN", source, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_configurations_that_nobody_knows_ask_for_the_network(large, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    large.rename(folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "no such model"}')
    refused(CheckpointArchitectureError, "model=", folder, tmp_path / "out", model=None)
    compress_checkpoint(folder, tmp_path / "out", SVDCompressor(0.5), model=network)
    assert (tmp_path / "out" / "config.json").exists()


def test_what_is_there_is_replaced_only_when_asked(large, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    large.rename(folder / "model.safetensors")
    for source, out in ((folder, tmp_path / "out"), (folder / "model.safetensors", None)):
        destination = out or tmp_path / "out.safetensors"
        if out:
            out.mkdir()
            (out / "mine").write_text("kept")
        else:
            destination.write_text("kept")
        before = contents(tmp_path)
        refused(CheckpointExistsError, "overwrite=True", source, destination)
        assert contents(tmp_path) == before
        compressor = SVDCompressor(0.5)
        compress_checkpoint(source, destination, compressor, model=network, overwrite=True)
        check_same(destination, compressor.fit_transform(seeded(network)))
        assert not (tmp_path / "out" / "mine").exists()
