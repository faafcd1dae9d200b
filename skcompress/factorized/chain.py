"""Arithmetic of factor chains: merge the groups of a layer, multiply a chain out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..protocols import Factors, Stage


def merge_groups(parts: Sequence[Factors]) -> Factors:
    """Make the factors of a grouped layer from those of each of its groups.

    Stage j becomes a grouped convolution with len(parts) times the groups it had.
    """
    tensors = tuple(torch.cat(same) for same in zip(*(p.tensors for p in parts), strict=True))
    return Factors(tensors, tuple(len(parts) * g for g in parts[0].groups))


def merge_stages(stages: Sequence[Stage], groups: int) -> tuple[Stage, ...]:
    """Shapes of `merge_groups` of `groups` parts with these stages."""
    return tuple(Stage((groups * s.shape[0], *s.shape[1:]), groups * s.groups) for s in stages)


def _dense_kernel(tensor: Tensor, groups: int) -> Tensor:
    """Kernel (out, in / groups, *k) of a grouped stage written as (out, in, *k)."""
    if groups == 1:
        return tensor
    parts = tensor.chunk(groups)
    width = tensor.shape[1]
    return torch.cat(
        [
            torch.cat(
                [p.new_zeros(len(p), g * width, *p.shape[2:]), p,
                 p.new_zeros(len(p), (groups - 1 - g) * width, *p.shape[2:])],
                dim=1,
            )
            for g, p in enumerate(parts)
        ]
    )  # fmt: skip


def _follow(first: Tensor, second: Tensor) -> Tensor:
    """Kernel of `first` (c, in, *k1) followed by `second` (out, c, *k2)."""
    product = torch.tensordot(second, first, dims=([1], [0]))  # out, *k2, in, *k1
    n_axes = first.dim() - 2
    product = product.movedim(1 + n_axes, 1)  # out, in, *k2, *k1
    interleaved = [axis for a in range(n_axes) for axis in (2 + a, 2 + n_axes + a)]
    shape = [b * a for b, a in zip(second.shape[2:], first.shape[2:], strict=True)]
    return product.permute(0, 1, *interleaved).reshape(*product.shape[:2], *shape)


def multiply_out(factors: Factors, groups: int = 1) -> Tensor:
    """Weight (out, in / groups, *kernel) that a chain of factors stands for.

    groups : groups of the whole layer; every stage has a multiple of it.
    """
    parts = [t.chunk(groups) for t in factors.tensors]
    weights = []
    for g in range(groups):
        stages = [
            _dense_kernel(p[g], n // groups) for p, n in zip(parts, factors.groups, strict=True)
        ]
        weight = stages[0]
        for stage in stages[1:]:
            weight = _follow(weight, stage)
        weights.append(weight)
    return torch.cat(weights) if groups > 1 else weights[0]
