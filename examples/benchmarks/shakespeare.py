"""Tiny Shakespeare, character by character, and a small decoder that continues it.

1,115,394 characters of Karpathy's char-rnn (2015); the last tenth is for measuring. Nothing is
downloaded.
"""

from __future__ import annotations

import lzma
from math import log
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

CONTEXT = 128  # characters in a window
NAMES = ("tinyshakespeare.txt", "tinyshakespeare.txt.xz", "input.txt")


class Block(nn.Module):
    """Causal self-attention with rotary positions (Su et al. 2021, arXiv 2104.09864), and an MLP.

    Normalised before each (as GPT-2 has it); queries, keys and values from layers of their own.
    """

    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (
            layer(y).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = scaled_dot_product_attention(rotate(q, turn), rotate(k, turn), v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turn each pair of features of (..., time, features) by angles that grow with time.

    turn : (2, time, features / 2), cosines and sines
    """
    (cos, sin), (a, b) = turn.to(x.dtype), x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Decoder(nn.Module):
    """From characters (batch, time) to scores of each one's successor (batch, time, vocabulary)."""

    def __init__(self, vocabulary: int, width: int = 128, depth: int = 4, n_heads: int = 4):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, n_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)
        self.features = width // n_heads
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, codes: Tensor) -> Tensor:
        pairs = torch.arange(self.features // 2, device=codes.device)
        speed = 10000.0 ** (-2 * pairs / self.features)
        angle = torch.arange(codes.shape[1], device=codes.device)[:, None] * speed
        x, turn = self.embedding(codes), torch.stack([angle.cos(), angle.sin()])
        for block in self.blocks:
            x = block(x, turn)
        return self.head(self.norm(x))


class Shakespeare:
    """The text as a task: batches to train on, inputs to calibrate with, a measure of quality."""

    unit, better = "bits per character", "lower"

    def __init__(self, folder: Path, limit: int | None = None):
        """Read the text; measure on `limit` windows only, if given."""
        text = read(folder)
        letters = sorted(set(text))
        code = {letter: number for number, letter in enumerate(letters)}
        codes = torch.tensor([code[letter] for letter in text])
        self.vocabulary = len(letters)
        self.train, test = codes.split([end := int(0.9 * len(codes)), len(codes) - end])
        n = (len(test) - 1) // CONTEXT
        pairs = [test[shift : shift + n * CONTEXT].view(n, CONTEXT) for shift in (0, 1)]
        self.inputs, self.targets = (part[:limit] for part in pairs)

    def build(self) -> nn.Module:
        return Decoder(self.vocabulary)

    def batch(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw n windows of the training text, and the same one character on."""
        starts = torch.randint(len(self.train) - CONTEXT, (n,), generator=generator)
        windows = self.train[starts[:, None] + torch.arange(CONTEXT + 1)]
        return windows[:, :-1], windows[:, 1:]

    def calibration(self, n: int, generator: np.random.Generator) -> Tensor:
        """Draw n windows (n, time) of the training text."""
        starts = torch.from_numpy(generator.integers(len(self.train) - CONTEXT, size=n))
        return self.train[starts[:, None] + torch.arange(CONTEXT)]

    @torch.no_grad()
    def quality(self, network: nn.Module) -> float:
        """Bits per character of the test text, in windows side by side."""
        network.eval()
        total = 0.0
        for x, y in zip(self.inputs.split(64), self.targets.split(64), strict=True):
            scores = network(x.to(device := next(network.parameters()).device))
            total += float(cross_entropy(scores.flatten(0, 1), y.flatten().to(device)) * y.numel())
        return total / self.targets.numel() / log(2)


def read(folder: Path) -> str:
    """Read the text from whichever of the file names `folder` has."""
    for path in (folder / name for name in NAMES):
        if path.exists():
            opener = lzma.open if path.suffix == ".xz" else open
            with opener(path, "rt", encoding="utf-8") as file:
                return file.read()
    raise FileNotFoundError(f"{folder} holds no tiny Shakespeare: expected {' or '.join(NAMES)}")
