"""Semi-structured zeros: at most N of every M neighbouring inputs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from sklearn.utils._param_validation import InvalidParameterError
from torch import Tensor


def parse_pattern(owner: str, pattern: Any) -> tuple[int, int] | None:
    """Read "N:M" as (N, M), 0 < N < M; None stays None."""
    if pattern is None:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", pattern)
    if found is None or not 0 < int(found[1]) < int(found[2]):
        raise InvalidParameterError(
            f"The 'pattern' parameter of {owner} must be None or a str 'N:M' with 0 < N < M, such "
            f"as '2:4' or '4:8'. Got {pattern!r} instead."
        )
    return int(found[1]), int(found[2])


def unsuited(shape: Sequence[int], pattern: tuple[int, int]) -> str | None:
    """Say why a weight (groups, out, in, *kernel) cannot have the pattern; None if it can."""
    n, m = pattern
    if shape[2] % m == 0:
        return None
    return f"its {shape[2]} inputs are no multiple of {m}, as {n}:{m} needs"


def keep_pattern(scores: Tensor, pattern: tuple[int, int]) -> Tensor:
    """Mark the N largest of every M neighbours along the inputs, of equal ones the first.

    scores : (groups, out, in, *kernel), in a multiple of M
    """
    n, m = pattern
    blocks = scores.movedim(2, -1).unflatten(-1, (-1, m))
    n_before = torch.zeros(blocks.shape, dtype=torch.uint8, device=scores.device)
    for i in range(m):
        for j in range(m):
            if i != j:
                one, other = blocks[..., i], blocks[..., j]
                n_before[..., i] += (other >= one) if j < i else (other > one)
    return (n_before < n).flatten(-2).movedim(-1, 2)
