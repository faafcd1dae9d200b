"""Networks, data and comparisons of the tests of fits with data."""

from __future__ import annotations

import torch
from models import seeded
from torch import Tensor, nn


def network() -> nn.Module:
    """Convolutions, one of them grouped and without bias, and linear layers; for `images`."""
    return seeded(lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, groups=2, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(96, 40), nn.ReLU(), nn.Linear(40, 10),
    ).eval())  # fmt: skip


def images(n: int = 64, seed: int = 1) -> Tensor:
    """Smooth images: inputs with few directions, as real ones have."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, 3, 3, 3, generator=generator)
    return nn.functional.interpolate(coarse, size=(12, 12), mode="bilinear")


def train(model: nn.Module, x: Tensor, labels: Tensor, lr: float, n_epochs: int) -> nn.Module:
    """Train on the first 1200 inputs, in an order that does not change; in eval mode after it."""
    optimizer = torch.optim.Adam(model.parameters(), lr)
    for epoch in range(n_epochs):
        order = torch.randperm(1200, generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(50):
            loss = nn.functional.cross_entropy(model(x[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def error(model: nn.Module, small: nn.Module, x: Tensor) -> float:
    """Norm of the difference of the outputs, relative to the first."""
    with torch.no_grad():
        return float((model(x) - small(x)).norm() / model(x).norm())


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks have the very same values."""
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
