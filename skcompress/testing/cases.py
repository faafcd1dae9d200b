"""Weights and models that break careless code."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


def awkward_weights(dtype: torch.dtype = torch.float32) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, weight) of the shapes and spectra that break careless code."""
    g = torch.Generator().manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    def with_spectrum(rows: int, columns: int, values: Tensor) -> Tensor:
        k = len(values)
        left = torch.linalg.qr(torch.randn(rows, k, generator=g, dtype=torch.float64)).Q
        right = torch.linalg.qr(torch.randn(columns, k, generator=g, dtype=torch.float64)).Q
        return ((left * values) @ right.mT).to(dtype)

    yield "row (1, 9)", rand(1, 9)
    yield "column (9, 1)", rand(9, 1)
    yield "square (12, 12)", rand(12, 12)
    yield "wide (6, 40)", rand(6, 40)
    yield "tall (40, 6)", rand(40, 6)
    yield "rank one", rand(10, 1) @ rand(1, 14)
    yield "all zero", torch.zeros(8, 10, dtype=dtype)
    halving = 0.5 ** torch.arange(20, dtype=torch.float64)
    yield "spectrum 0.5^i", with_spectrum(24, 20, halving)
    yield "repeated singular values", with_spectrum(16, 12, torch.ones(12, dtype=torch.float64))
    yield "rank deficient", rand(20, 3) @ rand(3, 15)
    yield "non-contiguous", rand(14, 10).mT
    yield "convolution", rand(12, 8, 3, 3)
    yield "convolution, non-contiguous", rand(8, 12, 3, 3).transpose(0, 1)
    yield "1 x 1 convolution", rand(12, 8, 1, 1)
    yield "one input channel", rand(16, 1, 3, 3)
    yield "1-D convolution", rand(10, 6, 5)
    yield "3-D convolution", rand(8, 6, 3, 2, 3)


def small_models() -> Iterator[tuple[str, nn.Module, tuple[Tensor, ...]]]:
    """Yield (name, model, arguments of its forward) of a few architectures."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield (
            "multilayer perceptron",
            nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 30)),
            (torch.randn(5, 20),),
        )
        yield (
            "convolutional",
            nn.Sequential(
                nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
                nn.Conv2d(16, 24, 3, stride=2, padding=1, padding_mode="reflect"), nn.ReLU(),
                nn.Conv2d(24, 24, 3, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                nn.Linear(24, 10),
            ).eval(),
            (torch.randn(2, 3, 12, 12),),
        )  # fmt: skip
        layer = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True)
        yield "transformer", nn.TransformerEncoder(layer, 2).eval(), (torch.randn(2, 7, 24),)
