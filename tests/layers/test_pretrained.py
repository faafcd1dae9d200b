"""Compressed models of transformers know who saves them, and what cannot be resized."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
from models import seeded
from torch import nn

from skcompress import SVDCompressor
from skcompress.errors import ResizeError
from skcompress.layers import densify
from skcompress.layers.pretrained import is_pretrained

transformers = pytest.importorskip("transformers")


def network() -> transformers.PreTrainedModel:
    config = transformers.GPT2Config(
        n_embd=24, n_layer=1, n_head=2, vocab_size=40, n_positions=16, n_inner=48
    )
    return seeded(lambda: transformers.GPT2LMHeadModel(config)).eval()


def test_every_model_that_has_stand_ins_inside_gets_a_quantiser():
    both = nn.ModuleDict({"whole": network(), "dense": network()})
    small = SVDCompressor(1, exclude=["dense"]).fit_transform(both)
    assert small["whole"].hf_quantizer.quantization_config.quant_method == "skcompress"
    assert small["whole"].transformer.hf_quantizer is not small["whole"].hf_quantizer
    assert not hasattr(small["dense"], "hf_quantizer")
    assert not hasattr(both["whole"], "hf_quantizer")


def test_nothing_is_left_of_it_once_the_layers_are_dense():
    small = SVDCompressor(1).fit_transform(network())
    dense = densify(small)
    for model in (dense, dense.transformer):
        assert not hasattr(model, "hf_quantizer")
        assert model.resize_token_embeddings(42).num_embeddings == 42


def test_quantisers_of_others_stay():
    model = network()
    other = SimpleNamespace(quantization_config=SimpleNamespace(quant_method="gptq"))
    model.hf_quantizer = other
    small = SVDCompressor(1).fit_transform(model)
    assert small.hf_quantizer.quantization_config.quant_method == "gptq"


def test_resizing_is_refused_by_name_in_copies_too():
    small = copy.deepcopy(SVDCompressor(1).fit_transform(network()))
    with pytest.raises(ResizeError, match=r"'transformer\.wte', 'lm_head'"):
        small.resize_token_embeddings(42)


def test_models_of_torch_are_none_of_transformers():
    assert is_pretrained(network())
    assert not is_pretrained(nn.Linear(2, 2))
