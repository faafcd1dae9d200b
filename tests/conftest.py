"""Shared by all tests: one thread, so that results and times repeat on busy machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import joblib
import pytest

# Imported where it is used: the process that only hands out tests does not need it.
if TYPE_CHECKING:
    import torch


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Processes for `-n auto`: as many as cores are granted here, none beside this one for one.

    Each imports what it tests and takes up to 1 GB, so that more than eight gain nothing.
    """
    cores = joblib.cpu_count()
    return min(cores, 8) if cores > 1 else 0


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def generator() -> torch.Generator:
    import torch

    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 1, 8, 8) of handwritten digits, and their labels."""
    import torch
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    return x, torch.tensor(labels)
