"""Data and networks that the tests of smooth training share."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn


def digits(n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits: float64 images (n, 64) in [0, 1], and their labels (n,)."""
    images, labels = load_digits(return_X_y=True)
    return images[:n] / 16, labels[:n]


def curve(n: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (n, 2) and a smooth function of them (n,), both float64."""
    inputs = np.random.RandomState(0).uniform(-1, 1, (n, 2))
    return inputs, inputs[:, 0] * inputs[:, 1] + inputs[:, 0]


class Convolutional(nn.Module):
    """Logits of 10 classes for images (n, 1, 8, 8)."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width))
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(64 * width, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images).relu())


def nuclear_norm(module: nn.Module) -> float:
    """Sum of the singular values of all weights with two axes or more."""
    with torch.no_grad():
        weights = [p.flatten(1) for p in module.parameters() if p.dim() > 1]
        return float(sum(torch.linalg.matrix_norm(w, "nuc") for w in weights))


def weights(module: nn.Module) -> torch.Tensor:
    """All parameters in one vector."""
    return torch.cat([p.detach().flatten() for p in module.parameters()])
