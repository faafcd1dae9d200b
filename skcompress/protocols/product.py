"""The weight that a chain of factors stands for: their product, and what is added to it."""

from __future__ import annotations

import torch
from torch import Tensor

from .factors import Factors, Pivots, Stage


def n_pivots(stage: Stage) -> int:
    """Channels of each group that are pivots: the length of the stored tensor's other axis."""
    return stage.shape[1] if stage.pivots == 0 else stage.shape[0] // stage.groups


def whole(tensor: Tensor, groups: int, pivots: Pivots | None) -> Tensor:
    """Join what is stored of a factor with the identity that is not."""
    if type(tensor).dequantize is not Tensor.dequantize:
        tensor = tensor.dequantize()  # torchao's tensors can be multiplied by, but not cut up
    if pivots is None:
        return tensor
    stored = tensor.flatten(1).unflatten(0, (groups, -1))
    n_rows = n_pivots(Stage(tuple(tensor.shape), groups, pivots.axis))
    identity = torch.eye(n_rows, dtype=tensor.dtype, device=tensor.device)
    joined = torch.cat([identity.expand(groups, -1, -1), stored], dim=1 + pivots.axis)
    if pivots.axis:
        joined = joined.mT
    # Which row is which channel within its group; where each channel is among the rows.
    n_first = groups * n_rows
    first, others = pivots.order[:n_first], pivots.order[n_first:]
    channels = torch.cat([first.reshape(groups, -1), others.reshape(groups, -1)], dim=1)
    rows = channels.argsort(dim=1)[..., None].expand_as(joined)
    joined = joined.gather(1, rows)
    if pivots.axis:
        joined = joined.mT
    return joined.flatten(0, 1).reshape(-1, joined.shape[2], *tensor.shape[2:])


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
    """Weight (out, in / groups, *kernel) that factors stand for.

    groups : groups of the whole layer; every stage has a multiple of it.
    """
    stored = zip(factors.tensors, factors.groups, factors.every_pivots, strict=True)
    parts = [whole(*stage).chunk(groups) for stage in stored]
    weights = []
    for g in range(groups):
        stages = [
            _dense_kernel(p[g], n // groups) for p, n in zip(parts, factors.groups, strict=True)
        ]
        weight = stages[0]
        for stage in stages[1:]:
            weight = _follow(weight, stage)
        weights.append(weight)
    product = torch.cat(weights) if groups > 1 else weights[0]
    return product if factors.sparse is None else product + factors.sparse.weight
