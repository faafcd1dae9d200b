"""Whole networks of transformers and torch: tiny, with random weights, nothing downloaded.

Each function gives a model and the keyword arguments of its forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import random
from torch import Tensor, nn

transformers = pytest.importorskip("transformers", reason="needs the extra `test`")

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


def bert():
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
