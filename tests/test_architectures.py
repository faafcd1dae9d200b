"""Whole networks of transformers and torch: tiny, with random weights, nothing downloaded."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from models import RANK, distance, factorized, low_rank_, random, seeded
from torch import Tensor, nn

from skcompress import SVDCompressor, TuckerCompressor, count_parameters
from skcompress.factorized import Factorized, kind_of

transformers = pytest.importorskip("transformers", reason="needs the extra `test`")

pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")

WIDTH = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 60,
}
IDS = random(2, 60).argsort(-1)[:, :9]
MASK = torch.arange(9) < torch.tensor([[9], [6]])
IMAGES = random(2, 3, 32, 32, dtype=torch.float32)


def bert() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.BertConfig(**WIDTH, max_position_embeddings=16)
    inputs = {"input_ids": IDS, "attention_mask": MASK.long(), "token_type_ids": (IDS > 30).long()}
    return transformers.BertForMaskedLM(config), inputs


def gpt2():
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=4, vocab_size=60, n_positions=16, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config), {"input_ids": IDS}


def llama():
    config = transformers.LlamaConfig(**WIDTH, num_key_value_heads=2)
    return transformers.LlamaForCausalLM(config), {"input_ids": IDS}


def t5():
    config = transformers.T5Config(
        d_model=32, d_ff=48, d_kv=8, num_layers=2, num_heads=4, vocab_size=60,
        decoder_start_token_id=0,
    )  # fmt: skip
    inputs = {"input_ids": IDS, "decoder_input_ids": IDS[:, :5]}
    return transformers.T5ForConditionalGeneration(config), inputs


def vit():
    sizes = {key: value for key, value in WIDTH.items() if key != "vocab_size"}
    config = transformers.ViTConfig(**sizes, image_size=32, patch_size=8)
    return transformers.ViTForImageClassification(config), {"pixel_values": IMAGES}


def resnet():
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[24, 32], depths=[2, 1], layer_type="bottleneck"
    )
    return transformers.ResNetForImageClassification(config), {"pixel_values": IMAGES}


def convnext():
    config = transformers.ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 2], num_stages=2)
    return transformers.ConvNextForImageClassification(config), {"pixel_values": IMAGES}


def mobilenet():
    config = transformers.MobileNetV2Config(depth_multiplier=0.25, min_depth=8, num_labels=10)
    return transformers.MobileNetV2ForImageClassification(config), {"pixel_values": IMAGES}


def wav2vec2():
    sizes = dict(WIDTH, vocab_size=32)
    config = transformers.Wav2Vec2Config(
        **sizes, conv_dim=(24, 24), conv_stride=(5, 2), conv_kernel=(10, 3),
        num_feat_extract_layers=2, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4,
        mask_time_prob=0.0,
    )  # fmt: skip
    inputs = {"input_values": random(2, 300, dtype=torch.float32)}
    return transformers.Wav2Vec2ForCTC(config), inputs


def mixtral():
    config = transformers.MixtralConfig(**WIDTH, num_key_value_heads=2, num_local_experts=3)
    return transformers.MixtralForCausalLM(config), {"input_ids": IDS}


def qwen_moe():
    config = transformers.Qwen3MoeConfig(
        **WIDTH, num_key_value_heads=2, num_experts=3, num_experts_per_tok=2,
        moe_intermediate_size=24, head_dim=8,
    )  # fmt: skip
    return transformers.Qwen3MoeForCausalLM(config), {"input_ids": IDS}


class ConvLSTM(nn.Module):
    """Convolutions along time, then recurrent layers, as speech and sensor models have."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(6, 24, 5, padding="same", padding_mode="replicate")
        self.lstm = nn.LSTM(24, 20, 2, batch_first=True, bidirectional=True, dropout=0.1)
        self.gru = nn.GRU(40, 24, batch_first=True)
        self.out = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.relu(self.conv(x)).transpose(1, 2)
        return self.out(self.gru(self.lstm(features)[0])[0][:, -1])


def conv_lstm():
    return ConvLSTM(), {"x": random(2, 6, 20, dtype=torch.float32)}


class ConvLSTMCell(nn.Module):
    """A recurrence whose gates are convolutions (Shi et al. 2015, arXiv 1506.04214)."""

    def __init__(self, channels: int = 12):
        super().__init__()
        self.gates = nn.Conv2d(3 + channels, 4 * channels, 3, padding=1)
        self.read = nn.Conv2d(channels, 3, 1)
        self.channels = channels

    def forward(self, frames: Tensor) -> Tensor:
        h = c = frames.new_zeros(len(frames), self.channels, *frames.shape[-2:])
        for frame in frames.unbind(1):
            i, f, o, g = self.gates(torch.cat([frame, h], dim=1)).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.read(h)


def conv_lstm_cell():
    return ConvLSTMCell(), {"frames": random(2, 3, 3, 7, 6, dtype=torch.float32)}


def transformer_encoder():
    layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True)
    inputs = {"src": random(2, 9, 32, dtype=torch.float32), "src_key_padding_mask": ~MASK}
    return nn.TransformerEncoder(layer, 2), inputs


def transformer():
    inputs = {"src": random(9, 2, 32, dtype=torch.float32),
              "tgt": random(5, 2, 32, seed=2, dtype=torch.float32)}  # fmt: skip
    return nn.Transformer(32, 4, 1, 1, 48), inputs


def convolutions_3d():
    model = nn.Sequential(
        nn.Conv3d(3, 16, 3, padding=1), nn.BatchNorm3d(16), nn.ReLU(),
        nn.Conv3d(16, 24, (3, 3, 2), stride=2), nn.ReLU(),
        nn.ConvTranspose3d(24, 16, 2, stride=2), nn.ReLU(), nn.Conv3d(16, 8, (1, 3, 1)),
    )  # fmt: skip
    return model, {"input": random(2, 3, 8, 8, 8, dtype=torch.float32)}


def autoencoder():
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=2), nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1, groups=2), nn.ReLU(),
        nn.ConvTranspose2d(16, 12, 3, stride=2, padding=1, output_padding=1), nn.ReLU(),
        nn.ConvTranspose2d(12, 3, 3, dilation=2, padding=2),
    )  # fmt: skip
    return model, {"input": IMAGES[..., :16, :16]}


ARCHITECTURES: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {
    f.__name__: f
    for f in (
        bert, gpt2, llama, t5, vit, resnet, convnext, mobilenet, wav2vec2, mixtral, qwen_moe,
        conv_lstm, conv_lstm_cell, transformer_encoder, transformer, convolutions_3d, autoencoder,
    )
}  # fmt: skip
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


COMPRESSORS = {"svd": SVDCompressor(rank=RANK), "tucker": TuckerCompressor(rank=RANK)}


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
