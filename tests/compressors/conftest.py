"""Shared by the tests of compressors."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """Images (n, 1, 8, 8) of handwritten digits, and their labels."""
    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    return x, torch.tensor(labels)
