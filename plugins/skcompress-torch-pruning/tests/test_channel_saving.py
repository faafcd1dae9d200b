"""Narrowed networks are saved and loaded by their original architecture."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from skcompress import ChannelPruner, SVDCompressor, load, save


def make() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("factorized", [False, True])
def test_comes_back(factorized, tmp_path):
    images = torch.randn(8, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    small = ChannelPruner(0.6).fit_transform(make(), images)
    if factorized:
        small = SVDCompressor(0.7).fit_transform(small)
    save(small, tmp_path / "small.safetensors")
    again = load(tmp_path / "small.safetensors", make)
    assert torch.equal(again(images), small(images))
    assert repr(again) == repr(small)
