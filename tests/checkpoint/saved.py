"""Models to save, and what has to be so of what is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from models import distance, seeded
from torch import nn

from skcompress import load, save


def small_network() -> nn.Module:
    """Convolutions, normalisation and linear layers: of everything a little."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3, groups=2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 10),
        )
    ).eval()  # fmt: skip


def images(n: int = 16) -> torch.Tensor:
    return seeded(lambda: torch.randn(n, 3, 10, 10))


def check_comes_back(
    model: nn.Module, factory: Callable[[], nn.Module] | nn.Module, path: Any, *args: Any, **kw: Any
) -> nn.Module:
    """Save, load and compare: outputs, everything that is stored, and the file of the result."""
    save(model, path / "saved.safetensors")
    again = load(path / "saved.safetensors", factory)
    with torch.no_grad():
        outputs, expected = again(*args, **kw), model(*args, **kw)
    if hasattr(expected, "logits"):
        outputs, expected = outputs.logits, expected.logits
    assert distance(outputs, expected) == 0
    assert [type(m).__name__ for m in again.modules()] == [
        type(m).__name__ for m in model.modules()
    ]
    assert [m.training for m in again.modules()] == [m.training for m in model.modules()]
    for ours, theirs in zip(again.named_parameters(), model.named_parameters(), strict=True):
        assert ours[0] == theirs[0]
        assert ours[1].dtype == theirs[1].dtype
        assert ours[1].requires_grad == theirs[1].requires_grad
    save(again, path / "again.safetensors")
    first, second = (path / f"{name}.safetensors" for name in ("saved", "again"))
    assert first.read_bytes() == second.read_bytes()
    return again
