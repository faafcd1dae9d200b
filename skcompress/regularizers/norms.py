"""Euclidean norms of weights of any size."""

from __future__ import annotations

import torch
from torch import Tensor

# Within these, squares of numbers and their sums are numbers of float32.
_LEAST, _MOST = 1e-15, 1e15


def norms(weight: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Norms over `axes`, which stay with length one; no number is too large or small to square.

    Those below 1e-19 may come out as zero where another one is in the ordinary range.
    """
    found = torch.linalg.vector_norm(weight, dim=axes, keepdim=True)
    if _LEAST < float(found.amax()) < _MOST:
        return found
    largest = weight.abs().amax()
    largest = torch.where(largest > 0, largest, torch.ones_like(largest))
    return largest * torch.linalg.vector_norm(weight / largest, dim=axes, keepdim=True)
