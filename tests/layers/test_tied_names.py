"""Models of transformers keep lists of what is tied, which have to name the factors."""

from __future__ import annotations

import pytest
import torch
from models import seeded

from skcompress import SVDCompressor

transformers = pytest.importorskip("transformers")


def tied_model():
    config = transformers.GPT2Config(
        vocab_size=100, n_embd=32, n_layer=1, n_head=2, n_positions=32, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    return seeded(lambda: transformers.GPT2LMHeadModel(config)).eval()


@pytest.fixture(scope="module")
def pair():
    model = tied_model()
    return model, SVDCompressor(rank=0.6).fit_transform(model)


def test_ties_are_those_of_the_factors(pair):
    model, small = pair
    assert model.all_tied_weights_keys == {"lm_head.weight": "transformer.wte.weight"}
    assert set(small.all_tied_weights_keys) == {"lm_head.0.weight", "lm_head.1.weight"}
    for target, source in small.all_tied_weights_keys.items():
        assert small.get_parameter(target) is small.get_parameter(source)


def test_tying_again_changes_nothing(pair):
    small = pair[1]
    ids = torch.arange(9)[None]
    before = small(ids).logits
    small.tie_weights()
    assert torch.equal(small(ids).logits, before)
    assert small.lm_head[0].weight is small.transformer.wte[1].weight


def test_is_saved_with_what_is_tied_once(pair, tmp_path):
    from safetensors.torch import load_file

    small = pair[1]
    small.save_pretrained(tmp_path)
    stored = sum(t.numel() for t in load_file(tmp_path / "model.safetensors").values())
    assert stored == sum(p.numel() for p in small.parameters())


def test_the_dense_model_has_the_list_of_its_class_again(pair):
    model, small = pair
    dense = SVDCompressor().inverse_transform(small)
    assert "_tied_weights_keys" not in vars(dense)
    assert dense.all_tied_weights_keys == model.all_tied_weights_keys
    dense.tie_weights()
