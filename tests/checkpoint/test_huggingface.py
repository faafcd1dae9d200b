"""Compressed models of transformers in their own folders, read by `from_pretrained`."""

from __future__ import annotations

import copy
import importlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, IDS, WIDTH, transformers
from models import seeded
from safetensors.torch import load_file, save_file
from torch import nn

import skcompress
from skcompress import (
    LowRankCompressor,
    MagnitudePruner,
    Pruner,
    SVDCompressor,
    load,
    save,
    to_plain,
)
from skcompress.decompositions.low_rank_sparse import LowRankSparse
from skcompress.errors import ArchitectureError, CheckpointFileError, ResizeError
from skcompress.layers.narrowed import note_shapes

transformers.logging.set_verbosity_error()


def tied_llama() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.LlamaConfig(**WIDTH, num_key_value_heads=2, tie_word_embeddings=True)
    return transformers.LlamaForCausalLM(config), {"input_ids": IDS}


FAMILIES = {
    "tied llama": tied_llama,
    **{n: ARCHITECTURES[n] for n in ("bert", "gpt2", "t5", "llama", "mixtral", "vit", "resnet")},
}
WAYS = {
    "svd": lambda m: SVDCompressor(0.6).fit_transform(m),
    "pivot": lambda m: SVDCompressor(0.6, pivot=True).fit_transform(m),
    "rank one": lambda m: SVDCompressor(1).fit_transform(m),
    "pruned": lambda m: Pruner(sparsity=0.5).fit_transform(m),
    "sparse term": lambda m: LowRankCompressor(LowRankSparse(density=0.05), 0.9).fit_transform(m),
}


def network(name: str) -> tuple[Any, dict[str, Any]]:
    model, inputs = seeded(FAMILIES[name])
    return model.eval(), inputs


def outputs(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    # Memory of its own: where a tensor begins decides which instructions add it up.
    with torch.no_grad():
        return copy.deepcopy(model)(**inputs).logits


def check_same(again: nn.Module, small: nn.Module) -> None:
    assert [type(m).__name__ for m in again.modules()] == [
        type(m).__name__ for m in small.modules()
    ]
    ours, theirs = again.state_dict(keep_vars=True), small.state_dict(keep_vars=True)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
        assert ours[name].dtype == tensor.dtype
        assert ours[name].requires_grad == tensor.requires_grad, name
    shared = len({id(t) for t in ours.values()})
    assert shared == len({id(t) for t in theirs.values()})


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_comes_back(family, way, tmp_path):
    model, inputs = network(family)
    small = WAYS[way](model)
    small.save_pretrained(tmp_path / "small")
    again, report = type(model).from_pretrained(tmp_path / "small", output_loading_info=True)
    assert not any(report.values())
    check_same(again, small)
    assert torch.equal(outputs(again, inputs), outputs(small, inputs))
    again.save_pretrained(tmp_path / "again")
    weights = "model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (
        tmp_path / "small" / weights
    ).read_bytes()
    check_same(type(model).from_pretrained(tmp_path / "again"), small)


@pytest.mark.parametrize("family", ["tied llama", "mixtral", "t5"])
def test_sharded_and_in_half_precision(family, tmp_path):
    model, inputs = network(family)
    small = SVDCompressor(0.6).fit_transform(model.bfloat16())
    small.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    again = type(model).from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    check_same(again, small)
    assert torch.equal(outputs(again, inputs), outputs(small, inputs))


SCRIPT = """
import sys, torch
{first}
{second}
import transformers
transformers.logging.set_verbosity_error()
folder, inputs = sys.argv[1], torch.load(sys.argv[2])
model = transformers.{auto}.from_pretrained(folder)
with torch.no_grad():
    torch.save(model(**inputs).logits, sys.argv[3])
"""
BLOCKED = "sys.modules['skcompress'] = None"


def run(script: str, *arguments: Path | str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(p for p in sys.path if p)
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        check=False, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("family", "auto", "lines"),
    [
        ("tied llama", "AutoModelForCausalLM", ("import skcompress", "import transformers")),
        ("mixtral", "AutoModelForCausalLM", ("from transformers import LlamaModel",
                                             "import skcompress")),
    ],
    ids=["before transformers", "after transformers"],
)  # fmt: skip
def test_in_a_process_that_never_saw_the_compressor(family, auto, lines, tmp_path):
    model, inputs = network(family)
    small = SVDCompressor(0.6, pivot=True).fit_transform(model)
    small.save_pretrained(tmp_path / "small")
    torch.save(inputs, tmp_path / "inputs")
    script = SCRIPT.format(first=lines[0], second=lines[1], auto=auto)
    done = run(script, tmp_path / "small", tmp_path / "inputs", tmp_path / "outputs")
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "outputs")
    torch.testing.assert_close(found, outputs(small, inputs), rtol=1e-6, atol=1e-7)


FAILING = """
import sys
sys.modules["skcompress"] = None
import transformers
for line in sys.argv[1:]:
    folder, name = line.rsplit(":", 1)
    try:
        getattr(transformers, name).from_pretrained(folder)
    except RuntimeError as error:
        assert "mismatched" in str(error), error
    else:
        raise AssertionError(folder)
"""


def test_without_skcompress_it_fails_instead_of_drawing_random_numbers(tmp_path):
    lines = []
    for number, family in enumerate(FAMILIES):
        model, _ = network(family)
        SVDCompressor(1).fit_transform(model).save_pretrained(tmp_path / f"{number}")
        lines.append(f"{tmp_path}/{number}:{type(model).__name__}")
    done = run(FAILING, *lines)
    assert done.returncode == 0, done.stderr


def test_pruned_alone_it_needs_no_skcompress(tmp_path):
    model, inputs = network("gpt2")
    small = MagnitudePruner(0.5).fit_transform(model)
    small.save_pretrained(tmp_path / "small")
    torch.save(inputs, tmp_path / "inputs")
    script = SCRIPT.format(first=BLOCKED, second="", auto="AutoModelForCausalLM")
    done = run(script, tmp_path / "small", tmp_path / "inputs", tmp_path / "outputs")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "mixtral", "vit"])
def test_without_its_head_and_with_another(family, tmp_path):
    model, _ = network(family)
    small = SVDCompressor(0.6).fit_transform(model)
    small.save_pretrained(tmp_path / "whole")
    small.base_model.save_pretrained(tmp_path / "base")
    own = small.base_model.state_dict()
    assert own.keys() != model.base_model.state_dict().keys()
    for place in ("whole", "base"):
        found = transformers.AutoModel.from_pretrained(tmp_path / place).state_dict()
        further = found.keys() - own.keys()
        assert all(name.startswith("pooler.") for name in further)
        assert all(torch.equal(found[name], tensor) for name, tensor in own.items())


def test_another_head_on_the_base_model(tmp_path):
    model, _ = network("llama")
    small = SVDCompressor(0.4).fit_transform(model)
    small.base_model.save_pretrained(tmp_path / "base")
    small.save_pretrained(tmp_path / "whole")
    for place in ("base", "whole"):
        cls = transformers.AutoModelForSequenceClassification
        again = cls.from_pretrained(tmp_path / place)
        check_same(again.base_model, small.base_model)


def test_classes_without_a_base_model_in_common(tmp_path):
    model, _ = network("t5")
    small = SVDCompressor(0.6).fit_transform(model)
    small.save_pretrained(tmp_path)
    wanted = small.state_dict()
    for cls in (transformers.T5Model, transformers.T5EncoderModel):
        found = cls.from_pretrained(tmp_path).state_dict()
        assert any(name.endswith(".1.weight") for name in found)
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())
    wanted = transformers.T5Model.from_pretrained(tmp_path)
    wanted.save_pretrained(tmp_path / "base")
    check_same(transformers.AutoModel.from_pretrained(tmp_path / "base"), wanted)


def test_layers_that_another_class_has_not(tmp_path):
    """The pooler of a base model: of no use to the head that predicts masked words."""
    config = transformers.BertConfig(**WIDTH, max_position_embeddings=16)
    model = seeded(lambda: transformers.BertModel(config)).requires_grad_(False).eval()
    small = SVDCompressor(1).fit_transform(model)
    assert small.pooler.dense.kind == "linear"
    small.save_pretrained(tmp_path)
    check_same(transformers.AutoModel.from_pretrained(tmp_path), small)
    with pytest.raises(ArchitectureError, match="tied"):
        transformers.BertForMaskedLM.from_pretrained(tmp_path)
    again = transformers.BertForTokenClassification.from_pretrained(tmp_path)
    wanted = small.state_dict()
    assert all(torch.equal(t, wanted[n]) for n, t in again.bert.state_dict().items())


def test_another_folder_with_a_configuration(tmp_path):
    small = SVDCompressor(2).fit_transform(nn.Sequential(nn.Linear(20, 20)))
    (tmp_path / "config.json").write_text("{}")
    save(small, tmp_path)
    check_same(load(tmp_path, lambda: nn.Sequential(nn.Linear(20, 20))), small)


def test_tied_to_a_head_that_was_not_saved(tmp_path):
    """The head would be the factors of the embedding, the other way round: nothing says so."""
    model, _ = network("tied llama")
    small = SVDCompressor(1).fit_transform(model)
    small.base_model.save_pretrained(tmp_path)
    with pytest.raises(ArchitectureError, match="lm_head"):
        transformers.LlamaForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("family", ["tied llama", "t5", "gpt2"])
def test_generates_as_before(family, tmp_path):
    model, inputs = network(family)
    small = SVDCompressor(0.6).fit_transform(model)
    small.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    settings = {"max_new_tokens": 5, "do_sample": False}
    ids = inputs["input_ids"]
    assert torch.equal(again.generate(ids, **settings), small.generate(ids, **settings))
    assert torch.equal(
        again.generate(ids, num_beams=2, **settings), small.generate(ids, num_beams=2, **settings)
    )


def test_what_happened_since_is_saved(tmp_path):
    """Fine-tuned, frozen, compressed again, cast: what is written is what the model is then."""
    model, inputs = network("bert")
    small = SVDCompressor(0.7, exclude=["cls*"]).fit_transform(model)
    small.save_pretrained(tmp_path / "first")
    loaded = type(model).from_pretrained(tmp_path / "first").half().float()
    with torch.no_grad():
        loaded.bert.pooler = None
        for parameter in loaded.parameters():
            parameter.mul_(1.5)
    loaded.bert.encoder.layer[0].requires_grad_(False)
    twice = SVDCompressor(2, layers=["cls.predictions.transform.dense"]).fit_transform(loaded)
    twice.save_pretrained(tmp_path / "second")
    again = type(model).from_pretrained(tmp_path / "second")
    check_same(again, twice)
    assert torch.equal(outputs(again, inputs), outputs(twice, inputs))


def test_made_dense_again_it_is_an_ordinary_model(tmp_path):
    model, inputs = network("mixtral")
    compressor = SVDCompressor(0.6)
    compressor.fit_transform(model).save_pretrained(tmp_path / "small")
    again = type(model).from_pretrained(tmp_path / "small")
    dense = compressor.inverse_transform(again)
    dense.save_pretrained(tmp_path / "dense")
    assert "quantization_config" not in json.loads((tmp_path / "dense/config.json").read_text())
    expected = outputs(dense, inputs)
    assert torch.equal(outputs(type(model).from_pretrained(tmp_path / "dense"), inputs), expected)
    assert torch.equal(outputs(again.dequantize(), inputs), expected)
    again.save_pretrained(tmp_path / "dequantized")
    assert "quantization_config" not in json.loads(
        (tmp_path / "dequantized/config.json").read_text()
    )


def test_trainer_writes_and_reads_checkpoints(tmp_path):
    model, _ = network("tied llama")
    small = SVDCompressor(0.6).fit_transform(model)
    data = [{"input_ids": row, "labels": row} for row in IDS]
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, save_steps=1, per_device_train_batch_size=2, report_to=[],
        use_cpu=True, disable_tqdm=True, seed=0,
    )  # fmt: skip
    trainer = transformers.Trainer(small, arguments, train_dataset=data)
    trainer.train()
    again = type(model).from_pretrained(tmp_path / "checkpoint-2")
    check_same(again, small)
    first = type(model).from_pretrained(tmp_path / "checkpoint-1")
    resumed = transformers.Trainer(first, arguments, train_dataset=data)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    check_same(resumed.model, small)


def test_resizing_embeddings_works_or_says_which_cannot_be(tmp_path):
    model, _ = network("tied llama")
    small = SVDCompressor(0.6, exclude=["model.embed_tokens"]).fit_transform(model)
    small.resize_token_embeddings(64)
    small.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    check_same(again, small)
    for dense in ([], ["model.embed_tokens"]):
        network_of_two, _ = network("llama")
        factorised = SVDCompressor(1, exclude=dense).fit_transform(network_of_two)
        with pytest.raises(ResizeError, match="lm_head"):
            factorised.resize_token_embeddings(64)
        assert factorised.config.vocab_size == WIDTH["vocab_size"]
        assert factorised.get_input_embeddings().num_embeddings == WIDTH["vocab_size"]
        factorised.dequantize().resize_token_embeddings(64)


def test_other_ways_to_load(tmp_path):
    model, inputs = network("tied llama")
    small = SVDCompressor(0.6).fit_transform(model)
    small.save_pretrained(tmp_path)
    cls, expected = type(model), outputs(small, inputs)
    first = cls.from_pretrained(tmp_path, device_map="cpu")
    assert torch.equal(outputs(first, inputs), expected)
    further = cls.from_pretrained(tmp_path, config=first.config)
    assert torch.equal(outputs(further, inputs), expected)
    given = cls.from_pretrained(None, config=first.config, state_dict=small.state_dict())
    assert torch.equal(outputs(given, inputs), expected)
    assert cls.from_pretrained(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert torch.equal(outputs(pickle.loads(pickle.dumps(first)), inputs), expected)
    plain = to_plain(first)
    assert torch.equal(outputs(plain, inputs), expected)
    assert b"skcompress." not in pickle.dumps(plain)


def test_parts_of_a_layer_on_disk(tmp_path):
    model, inputs = network("llama")
    small = SVDCompressor(0.6).fit_transform(model)
    small.save_pretrained(tmp_path / "small")
    places = {"model.layers.0": "disk", "model.layers.1": "cpu", "model.embed_tokens": "cpu",
              "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}  # fmt: skip
    again = type(model).from_pretrained(
        tmp_path / "small", device_map=places, offload_folder=tmp_path / "disk"
    )
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, outputs(small, inputs))
    again.save_pretrained(tmp_path / "again")
    check_same(type(model).from_pretrained(tmp_path / "again"), small)


@pytest.mark.parametrize("family", ["tied llama", "mixtral"])
def test_save_and_load_use_the_same_folder(family, tmp_path):
    model, _ = network(family)
    small = SVDCompressor(0.6).fit_transform(model).train()
    small.base_model.requires_grad_(False)
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "tokenizer.json").write_text("{}")
    for _ in range(2):  # once over what is there
        save(small, tmp_path / "small", shard_bytes=20_000)
        again = load(tmp_path / "small", lambda: FAMILIES[family]()[0])
        check_same(again, small)
        assert [m.training for m in again.modules()] == [m.training for m in small.modules()]
    assert (tmp_path / "small" / "tokenizer.json").read_text() == "{}"
    assert [p.name for p in tmp_path.iterdir()] == ["small"]
    check_same(load(tmp_path / "small", model), small)
    other = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**WIDTH, "vocab_size": 61}))
    for wrong in (nn.Linear(2, 2), other, network("bert")[0]):
        with pytest.raises((ArchitectureError, CheckpointFileError)):
            load(tmp_path / "small", wrong)


def test_channels_that_were_taken_out(tmp_path):
    model, inputs = network("llama")
    small = copy.deepcopy(model)
    for block in small.model.layers:
        for layer, axis in (
            (block.mlp.gate_proj, 0),
            (block.mlp.up_proj, 0),
            (block.mlp.down_proj, 1),
        ):
            note_shapes(layer)
            layer.weight = nn.Parameter(layer.weight.detach().narrow(axis, 0, 40).contiguous())
            setattr(layer, ("out_features", "in_features")[axis], 40)
    save(small, tmp_path)
    for again in (type(model).from_pretrained(tmp_path), load(tmp_path, model)):
        check_same(again, small)
        assert torch.equal(outputs(again, inputs), outputs(small, inputs))
    again.save_pretrained(tmp_path / "again")
    check_same(type(model).from_pretrained(tmp_path / "again"), small)


def test_files_that_lack_or_forge_something(tmp_path):
    model, _ = network("llama")
    small = SVDCompressor(0.4).fit_transform(model)
    small.save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    tensors, said = load_file(weights), json.loads(config.read_text())
    lost = next(name for name in tensors if name.endswith("_proj.1.weight"))
    save_file({n: t for n, t in tensors.items() if n != lost}, weights, {"format": "pt"})
    with pytest.raises(CheckpointFileError, match=lost):
        type(model).from_pretrained(tmp_path)
    save_file(tensors, weights, {"format": "pt"})
    ours = said["quantization_config"]
    layer = next(iter(ours["structure"]["stand_ins"]))
    for changed, match in [
        ({"version": 2}, "version '2'"),
        ({"structure": None}, "damaged or forged"),
        ({"structure": {**ours["structure"], "stand_ins": 3}}, "damaged or forged"),
        ({"structure": {k: v for k, v in ours["structure"].items() if k != "ties"}}, "ties"),
    ]:
        config.write_text(json.dumps({**said, "quantization_config": {**ours, **changed}}))
        with pytest.raises(CheckpointFileError, match=match):
            type(model).from_pretrained(tmp_path)
    forged = copy.deepcopy(said)
    forged["quantization_config"]["structure"]["stand_ins"][layer]["slots"][""][0]["shape"][0] = 99
    config.write_text(json.dumps(forged))
    with pytest.raises(CheckpointFileError, match=layer):
        type(model).from_pretrained(tmp_path)
    config.write_text(json.dumps({**said, "num_hidden_layers": 1}))
    with pytest.raises(ArchitectureError, match=r"layers\.1"):
        type(model).from_pretrained(tmp_path)


def test_importing_skcompress_waits_for_transformers():
    script = """
import importlib, sys
import skcompress
importlib.reload(skcompress)
names = [type(finder).__name__ for finder in sys.meta_path]
assert names.count("_WhenTransformersIsImported") == 1, names
assert "transformers" not in sys.modules
assert not [name for name in sys.modules if name.startswith("skcompress.")]
import importlib.util
assert importlib.util.find_spec("transformers.quantizers.auto") is not None  # only asked for
import transformers.quantizers.auto as auto
assert "skcompress" in auto.AUTO_QUANTIZER_MAPPING
"""
    done = run(script)
    assert done.returncode == 0, done.stderr


def test_a_transformers_that_is_another_one(monkeypatch, tmp_path):
    auto = importlib.import_module("transformers.quantizers.auto")
    monkeypatch.delitem(auto.AUTO_QUANTIZER_MAPPING, "skcompress")
    monkeypatch.setitem(sys.modules, "skcompress.checkpoint.huggingface.quantizer", None)
    with pytest.warns(UserWarning, match="skcompress.save and load do"):
        skcompress._register()
    model, inputs = network("tied llama")
    small = SVDCompressor(1).fit_transform(model)
    save(small, tmp_path)
    assert torch.equal(outputs(load(tmp_path, model), inputs), outputs(small, inputs))


def test_from_pretrained_compresses_nothing(tmp_path):
    model, _ = network("gpt2")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="SVDCompressor"):
        type(model).from_pretrained(tmp_path, quantization_config={"quant_method": "skcompress"})
