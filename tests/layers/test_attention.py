from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from models import RANK, distance, exact, low_rank_, random, seeded
from torch import nn
from torch.nn.utils import parametrizations

from skcompress import SVDCompressor, count_parameters
from skcompress.layers.attention import FactorizedMultiheadAttention
from skcompress.layers.linear import FactorizedLinear

QUERIES, KEYS, BATCH, HEADS, DIM = 5, 7, 3, 4, 16


def attention(**settings) -> nn.MultiheadAttention:
    def build():
        layer = nn.MultiheadAttention(DIM, HEADS, dtype=torch.float64, **settings)
        if layer.in_proj_bias is not None:  # torch starts them at zero
            nn.init.normal_(layer.in_proj_bias)
            nn.init.normal_(layer.out_proj.bias)
        return layer

    dense = seeded(build).eval()
    bias_kv = [b.detach().clone() for b in (dense.bias_k, dense.bias_v) if b is not None]
    low_rank_(dense)
    for now, before in zip((dense.bias_k, dense.bias_v), bias_kv, strict=False):
        now.data.copy_(before)
    return dense


def sequences(dense: nn.MultiheadAttention, *, batched: bool = True):
    made = [
        random(BATCH, n, width, seed=n + width)
        for n, width in ((QUERIES, DIM), (KEYS, dense.kdim), (KEYS, dense.vdim))
    ]
    if not batched:
        return [x[0] for x in made]
    return made if dense.batch_first else [x.transpose(0, 1) for x in made]


def compressed(dense: nn.MultiheadAttention, **settings) -> FactorizedMultiheadAttention:
    compressor = exact(**settings)
    small = compressor.fit_transform(dense)
    assert isinstance(small, FactorizedMultiheadAttention)
    assert count_parameters(small) == compressor.n_parameters_out_ < count_parameters(dense)
    return small


def check(dense, small, inputs, **arguments) -> None:
    for need_weights, average in itertools.product((True, False), (True, False)):
        options = {"need_weights": need_weights, "average_attn_weights": average, **arguments}
        ours, theirs = small(*inputs, **options), dense(*inputs, **options)
        assert (ours[1] is None) == (theirs[1] is None) == (not need_weights)
        assert distance(ours, theirs) < 1e-12


SETTINGS = [
    {},
    {"batch_first": True},
    {"bias": False},
    {"kdim": 10, "vdim": 12},
    {"kdim": 10, "bias": False, "batch_first": True},
    {"add_bias_kv": True},
    {"add_zero_attn": True},
    {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True, "vdim": 20},
]
every_setting = pytest.mark.parametrize("settings", SETTINGS, ids=str)


@every_setting
def test_settings(settings):
    dense = attention(**settings)
    small = compressed(dense)
    check(dense, small, sequences(dense))
    check(dense, small, sequences(dense, batched=False))
    with torch.no_grad():
        check(dense, small, sequences(dense))


@every_setting
def test_inverse(settings):
    dense = attention(**settings)
    small = compressed(dense)
    back = SVDCompressor().inverse_transform(small)
    assert type(back) is nn.MultiheadAttention
    assert type(back.out_proj) is type(dense.out_proj)
    assert list(back.state_dict()) == list(dense.state_dict())
    assert distance(dict(back.state_dict()), dict(dense.state_dict())) < 1e-12
    check(dense, back, sequences(dense))


def test_self_attention_on_the_fast_path():
    dense = attention(batch_first=True)
    small = compressed(dense)
    x = sequences(dense)[0]
    for context in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with context():
            check(dense, small, [x, x, x])


def key_padding(boolean: bool):
    lengths = torch.tensor([[KEYS], [4], [1]])
    hidden = torch.arange(KEYS) >= lengths
    if boolean:
        return hidden
    return torch.where(hidden, -torch.inf, random(BATCH, KEYS, seed=9))


def attention_mask(boolean: bool, per_head: bool):
    shape = (BATCH * HEADS, QUERIES, KEYS) if per_head else (QUERIES, KEYS)
    values = random(*shape, seed=8)
    if not boolean:
        return values
    hidden = values > 0
    hidden[..., 0] = False  # everyone may look somewhere
    return hidden


@every_setting
@pytest.mark.parametrize("boolean", [True, False])
def test_key_padding_masks(settings, boolean):
    dense = attention(**settings)
    small = compressed(dense)
    mask = key_padding(boolean)
    check(dense, small, sequences(dense), key_padding_mask=mask)
    check(dense, small, sequences(dense, batched=False), key_padding_mask=mask[1])


@every_setting
@pytest.mark.parametrize("boolean", [True, False])
@pytest.mark.parametrize("per_head", [True, False])
def test_attention_masks(settings, boolean, per_head):
    dense = attention(**settings)
    small = compressed(dense)
    mask = attention_mask(boolean, per_head)
    check(dense, small, sequences(dense), attn_mask=mask)
    check(dense, small, sequences(dense), attn_mask=mask, key_padding_mask=key_padding(boolean))
    alone = mask[:HEADS] if per_head else mask
    check(dense, small, sequences(dense, batched=False), attn_mask=alone)


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask and attn_mask")
def test_masks_of_different_kinds_together():
    dense = attention()
    small = compressed(dense)
    masks = {
        "attn_mask": attention_mask(boolean=False, per_head=False),
        "key_padding_mask": key_padding(boolean=True),
    }
    check(dense, small, sequences(dense), **masks)


def test_causal_hint():
    dense = attention(batch_first=True)
    small = compressed(dense)
    x = sequences(dense)[0]
    mask = nn.Transformer.generate_square_subsequent_mask(QUERIES, dtype=torch.float64)
    check(dense, small, [x, x, x], attn_mask=mask, is_causal=True)
    padding = torch.zeros(BATCH, QUERIES, dtype=torch.float64)
    padding[1, 3:] = -torch.inf
    check(dense, small, [x, x, x], attn_mask=mask, is_causal=True, key_padding_mask=padding)
    for module in (dense, small):
        with pytest.raises(RuntimeError, match="Need attn_mask"):
            module(x, x, x, is_causal=True)


def test_masks_of_a_wrong_shape_are_refused():
    dense = attention(add_zero_attn=True)
    small = compressed(dense)
    wrong = [
        {"attn_mask": torch.zeros(QUERIES, KEYS + 2, dtype=torch.float64)},
        {"attn_mask": torch.zeros(QUERIES, KEYS - 2, dtype=torch.float64)},
        {"key_padding_mask": torch.zeros(BATCH, KEYS + 1, dtype=torch.bool)},
    ]
    for module, arguments in itertools.product((dense, small), wrong):
        with pytest.raises((RuntimeError, AssertionError)):
            module(*sequences(dense), **arguments)


def test_dropout_in_training_mode_only():
    dense = attention(dropout=0.5)
    small = compressed(dense)
    inputs = sequences(dense)

    def run(module, **options):
        return seeded(lambda: module(*inputs, **options))

    assert distance(run(small), run(dense)) < 1e-12
    small.train()
    dense.train()
    assert distance(run(small), run(dense)) < 1e-12
    assert distance(run(small), small.eval()(*inputs)) > 0.01
    small.train()
    fused = run(small, need_weights=False)[0]
    assert distance(fused, small.eval()(*inputs)[0]) > 0.01


@pytest.mark.parametrize(
    "layers",
    [["q_proj"], ["v_proj", "k_proj"], ["out_proj"], ["q_proj", "out_proj"]],
    ids=" ".join,
)
@every_setting
def test_only_some_projections(layers, settings):
    dense = attention(**settings)
    next(dense.parameters()).requires_grad_(False)  # in_proj_weight or q_proj_weight
    small = compressed(dense, layers=layers)
    chains = {n for n, m in small.named_children() if isinstance(m, FactorizedLinear)}
    assert chains == set(layers)
    check(dense, small, sequences(dense))
    back = SVDCompressor().inverse_transform(small)
    check(dense, back, sequences(dense))
    trained = {n: p.requires_grad for n, p in dense.named_parameters()}
    assert {n: p.requires_grad for n, p in back.named_parameters()} == trained


def test_answers_as_the_original():
    for settings in SETTINGS:
        dense = attention(**settings)
        small = compressed(dense)
        for name in ("embed_dim", "kdim", "vdim", "num_heads", "head_dim", "dropout",
                     "batch_first", "add_zero_attn"):  # fmt: skip
            assert getattr(small, name) == getattr(dense, name), name
        for name in ("in_proj_weight", "in_proj_bias", "bias_k", "bias_v"):
            theirs = getattr(dense, name)
            ours = getattr(small, name)
            assert (ours is None) == (theirs is None), name
            if theirs is not None:
                assert distance(ours, theirs) < 1e-12
        assert distance(small.out_proj.weight, dense.out_proj.weight) < 1e-12
        parts = [small.q_proj_weight, small.k_proj_weight, small.v_proj_weight]
        assert [p.shape[1] for p in parts] == [DIM, dense.kdim, dense.vdim]
        # The answers are enough for torch's function of separate weights, which this asks for.
        assert small._qkv_same_embed_dim is False
        inputs = sequences(dense)
        if dense.batch_first:
            inputs = [x.transpose(0, 1) for x in inputs]
        theirs = dense(*sequences(dense))[0]
        ours = F.multi_head_attention_forward(
            *inputs, DIM, HEADS, None, small.in_proj_bias, small.bias_k, small.bias_v,
            small.add_zero_attn, 0.0, small.out_proj.weight, small.out_proj.bias,
            use_separate_proj_weight=True, q_proj_weight=parts[0], k_proj_weight=parts[1],
            v_proj_weight=parts[2],
        )[0]  # fmt: skip
        assert distance(ours.transpose(0, 1) if dense.batch_first else ours, theirs) < 1e-12


def test_truncation_computes_with_the_weights_that_it_reports():
    dense = seeded(lambda: nn.MultiheadAttention(DIM, HEADS, dtype=torch.float64))
    small = SVDCompressor(rank=5).fit_transform(dense)
    back = SVDCompressor().inverse_transform(small)
    assert distance(back.in_proj_weight, small.in_proj_weight) < 1e-14
    inputs = sequences(dense)
    assert distance(small(*inputs), back(*inputs)) < 1e-12
    assert distance(small(*inputs), dense(*inputs)) > 1e-3


def test_plan_has_a_row_for_each_projection():
    compressor = exact(exclude="1.k_proj")
    compressor.fit(nn.Sequential(nn.ReLU(), attention()))
    names = [row.name for row in compressor.plan_]
    assert names == ["1.q_proj", "1.k_proj", "1.v_proj", "1.out_proj"]
    assert compressor.plan_["1.k_proj"].reason == "in exclude"
    assert compressor.ranks_ == dict.fromkeys(["1.q_proj", "1.v_proj", "1.out_proj"], RANK)


# --- parameters that are shared or computed ---------------------------------------------


def test_input_projections_that_two_layers_share_stay_one_parameter():
    model = nn.ModuleList([attention(), attention()])
    model[1].in_proj_weight = model[0].in_proj_weight
    model[1].in_proj_bias = model[0].in_proj_bias
    compressor = exact()
    small = compressor.fit_transform(model)
    assert set(compressor.ranks_) == {"0.out_proj", "1.out_proj"}
    assert "shares its weight among 0, 1" in compressor.plan_["0.q_proj"].reason
    assert small[0].in_proj_weight is small[1].in_proj_weight
    assert small[0].in_proj_bias is small[1].in_proj_bias
    assert count_parameters(small) == compressor.n_parameters_out_
    for ours, theirs in zip(small, model, strict=True):
        check(theirs, ours, sequences(theirs))
    back = compressor.inverse_transform(small)
    assert back[0].in_proj_weight is back[1].in_proj_weight
    assert count_parameters(back) == count_parameters(model)


def test_biases_that_two_layers_share_stay_one_parameter():
    model = nn.ModuleList([attention(), attention()])
    model[1].in_proj_bias = model[0].in_proj_bias
    model[1].out_proj.bias = model[0].out_proj.bias
    compressor = exact()
    small = compressor.fit_transform(model)
    assert len(compressor.ranks_) == 8
    assert small[0].in_proj_bias is small[1].in_proj_bias
    assert small[0].out_proj.bias is small[1].out_proj.bias
    assert count_parameters(small) == compressor.n_parameters_out_


@pytest.mark.parametrize("head_first", [True, False])
def test_output_projection_that_is_used_elsewhere_stays_one_module(head_first):
    dense = attention()
    pair = [("head", dense.out_proj), ("attention", dense)]
    model = nn.ModuleDict(pair if head_first else pair[::-1])
    compressor = exact()
    small = compressor.fit_transform(model)
    assert set(compressor.ranks_) == {f"attention.{n}_proj" for n in "qkv"}
    assert "shares its weight" in compressor.plan_["attention.out_proj"].reason
    assert small["head"] is small["attention"].out_proj
    assert count_parameters(small) == compressor.n_parameters_out_


def test_separate_projections_that_are_one_parameter_stay_one():
    dense = attention(kdim=10, vdim=10)
    dense.v_proj_weight = dense.k_proj_weight
    compressor = exact()
    small = compressor.fit_transform(dense)
    assert set(compressor.ranks_) == {"q_proj", "out_proj"}
    assert small.v_proj_weight is small.k_proj_weight
    assert count_parameters(small) == compressor.n_parameters_out_
    check(dense, small, sequences(dense))
    back = compressor.inverse_transform(small)
    assert back.v_proj_weight is back.k_proj_weight
    check(dense, back, sequences(dense))


def test_parametrized_projections_are_left_with_the_reason():
    model = nn.ModuleList([attention(), attention(), nn.Linear(16, 16, dtype=torch.float64)])
    parametrizations.spectral_norm(model[0], "in_proj_weight")
    parametrizations.spectral_norm(model[1].out_proj)
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    compressor = exact()
    small = compressor.fit_transform(model)
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert "parametrized" in compressor.plan_["0"].reason
    assert "parametrized" in compressor.plan_["1"].reason
    assert count_parameters(small) == compressor.n_parameters_out_
    small.eval()
    model.eval()
    check(model[0], small[0], sequences(model[0]))


def test_subclass_that_computes_something_else_is_left_with_the_reason():
    class Residual(nn.MultiheadAttention):
        def forward(self, query, key, value, **options):
            mixed, weights = super().forward(query, key, value, **options)
            return query + mixed, weights

    dense = low_rank_(seeded(lambda: Residual(DIM, HEADS, dtype=torch.float64))).eval()
    compressor = exact()
    small = compressor.fit_transform(nn.ModuleList([dense]))[0]
    assert compressor.plan_["0"].reason == "Residual rewrites forward of MultiheadAttention"
    check(dense, small, sequences(dense))
