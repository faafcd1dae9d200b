"""Attention with factors in torch's transformer layers, on all of their paths."""

from __future__ import annotations

import pytest
import torch
from models import distance, exact, factorized, low_rank_, random, seeded
from torch import nn

from skcompress.layers.linear import FactorizedLinear

QUERIES, KEYS, BATCH, HEADS, DIM = 5, 7, 3, 4, 16


def encoder(**settings) -> nn.TransformerEncoder:
    settings = {"batch_first": True, "dim_feedforward": 24, "dtype": torch.float64, **settings}

    def build():
        layer = nn.TransformerEncoderLayer(DIM, HEADS, **settings)
        made = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True)
        for parameter in made.parameters():
            if parameter.dim() == 1:
                nn.init.normal_(parameter)
        return made

    return low_rank_(seeded(build)).eval()


PARTS = {
    "everything": None,
    "attention": ["*self_attn*"],
    "output projections": ["*out_proj"],
    "feed-forward": ["*linear?"],
    "the second layer": ["layers.1"],
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layers", PARTS.values(), ids=PARTS.keys())
@pytest.mark.parametrize(
    "settings",
    [{}, {"activation": "gelu"}, {"norm_first": True}, {"batch_first": False}, {"bias": False}],
    ids=str,
)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_encoder(layers, settings, context):
    dense = encoder(**settings)
    compressor = exact(layers=layers)
    small = compressor.fit_transform(dense)
    assert factorized(small)
    x = random(BATCH, QUERIES, DIM)
    padding = torch.arange(QUERIES) >= torch.tensor([[QUERIES], [3], [1]])
    causal = nn.Transformer.generate_square_subsequent_mask(QUERIES, dtype=torch.float64)
    if not dense.layers[0].self_attn.batch_first:
        x = x.transpose(0, 1)
    with context():
        for arguments in (
            {},
            {"src_key_padding_mask": padding},
            {"mask": causal},
            {"mask": causal, "is_causal": True},
            {"mask": causal.isinf(), "src_key_padding_mask": padding},
        ):
            assert distance(small(x, **arguments), dense(x, **arguments)) < 1e-10, arguments


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_encoder_layer_takes_nested_tensors():
    dense = encoder()
    small = exact().fit_transform(dense)
    parts = [random(n, DIM, seed=n) for n in (5, 2, 3)]
    with torch.no_grad():
        nested = torch.nested.nested_tensor(parts)
        ours = small.layers[0](nested).unbind()
        theirs = dense.layers[0](nested).unbind()
    assert distance(list(ours), list(theirs)) < 1e-10
    attention_alone = small.layers[0].self_attn
    with torch.no_grad(), pytest.raises(RuntimeError, match="masks of nested tensors"):
        attention_alone(nested, nested, nested, attn_mask=torch.zeros(5, 5))


@pytest.mark.parametrize("layers", PARTS.values(), ids=PARTS.keys())
def test_the_fused_kernel_never_multiplies_factors_out(layers, monkeypatch):
    small = exact(layers=layers).fit_transform(encoder())
    products = []
    original = FactorizedLinear.weight.fget

    def counted(self):
        products.append(self)
        return original(self)

    monkeypatch.setattr(FactorizedLinear, "weight", property(counted))
    with torch.no_grad():
        small(random(BATCH, QUERIES, DIM))
    assert products == []


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("activation", ["relu", "gelu", nn.ReLU(), nn.GELU(), torch.tanh])
def test_inverse_brings_the_fused_kernel_back(activation):
    dense = encoder(activation=activation)
    compressor = exact(layers="layers.0")
    small = compressor.fit_transform(dense)
    switches = [layer.activation_relu_or_gelu for layer in dense.layers]
    assert [layer.activation_relu_or_gelu for layer in small.layers] == [0, switches[1]]
    back = compressor.inverse_transform(small)
    assert [layer.activation_relu_or_gelu for layer in back.layers] == switches
    x = random(BATCH, QUERIES, DIM)
    with torch.no_grad():
        assert distance(back(x), dense(x)) < 1e-10


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("batch_first", [True, False])
def test_encoder_and_decoder(batch_first):
    def build():
        return nn.Transformer(DIM, HEADS, 1, 2, 24, batch_first=batch_first, dtype=torch.float64)

    dense = low_rank_(seeded(build)).eval()
    compressor = exact()
    small = compressor.fit_transform(dense)
    assert len(compressor.ranks_) == 6 + 2 * 10
    source, target = random(BATCH, KEYS, DIM), random(BATCH, QUERIES, DIM, seed=2)
    if not batch_first:
        source, target = source.transpose(0, 1), target.transpose(0, 1)
    causal = nn.Transformer.generate_square_subsequent_mask(QUERIES, dtype=torch.float64)
    hidden = torch.arange(KEYS) >= torch.tensor([[KEYS], [4], [1]])
    for arguments in (
        {},
        {"tgt_mask": causal, "tgt_is_causal": True},
        {"tgt_mask": causal.isinf(), "memory_key_padding_mask": hidden},
        {"src_key_padding_mask": hidden, "memory_key_padding_mask": hidden},
    ):
        ours, theirs = small(source, target, **arguments), dense(source, target, **arguments)
        assert distance(ours, theirs) < 1e-10, arguments
    small.train()(source, target).sum().backward()
    assert all(p.grad is not None for p in small.parameters())
