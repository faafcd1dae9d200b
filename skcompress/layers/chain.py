"""Arithmetic of factors: merge the groups of a layer, multiply a chain out."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ..protocols import Factors, Pivots, Sparse, Stage


def merge_groups(parts: Sequence[Factors]) -> Factors:
    """Make the factors of a grouped layer from those of each of its groups.

    Stage j becomes a grouped convolution with len(parts) times the groups it had.
    """
    if len(parts) == 1:
        return parts[0]
    tensors = tuple(torch.cat(same) for same in zip(*(p.tensors for p in parts), strict=True))
    groups = tuple(len(parts) * g for g in parts[0].groups)
    terms = [p.sparse for p in parts if p.sparse is not None]
    sparse = _merge_sparse(terms) if terms else None
    if not parts[0].pivots:
        return Factors(tensors, groups, sparse=sparse)
    stages = parts[0].stages[: len(tensors)]
    pivots = tuple(map(_merge_pivots, stages, zip(*(p.pivots for p in parts), strict=True)))
    return Factors(tensors, groups, pivots, sparse)


def _merge_sparse(parts: Sequence[Sparse]) -> Sparse:
    """Lay the weights of the groups one after another."""
    out, *rest = parts[0].shape
    shape, size = (len(parts) * out, *rest), prod(parts[0].shape)
    positions = torch.cat([p.positions.long() + g * size for g, p in enumerate(parts)])
    values = torch.cat([p.values for p in parts])
    return Sparse(values, positions.to(Sparse.index_dtype(shape)), shape)


def _merge_pivots(stage: Stage, parts: Sequence[Pivots | None]) -> Pivots | None:
    """Number the channels of each group after those of the groups before it."""
    present = [p for p in parts if p is not None]
    if not present:
        return None
    orders = [p.order + g * len(p.order) for g, p in enumerate(present)]
    n_pivots = stage.groups * _n_pivots(stage)
    order = torch.cat([o[:n_pivots] for o in orders] + [o[n_pivots:] for o in orders])
    return Pivots(present[0].axis, order)


def merge_stages(stages: Sequence[Stage], groups: int) -> tuple[Stage, ...]:
    """Shapes of `merge_groups` of `groups` parts with these stages."""

    def taller(shape: tuple[int, ...]) -> tuple[int, ...]:
        return (groups * shape[0], *shape[1:])

    return tuple(
        Stage(taller(s.shape), groups * s.groups, s.pivots)
        if s.sparse is None
        else Stage(taller(s.shape), sparse=taller(s.sparse))
        for s in stages
    )


def empty_factors(stages: Sequence[Stage], dtype: torch.dtype, device: str) -> Factors:
    """Factors of these shapes, without values."""
    links = [s for s in stages if s.sparse is None]
    pivots = [
        None if s.pivots is None else Pivots(
            s.pivots,
            torch.empty(s.shape[0] + s.groups * s.shape[1], dtype=torch.int64, device=device),
        )
        for s in links
    ]  # fmt: skip
    terms = [
        Sparse(
            torch.empty(s.shape, dtype=dtype, device=device),
            torch.empty(s.shape, dtype=Sparse.index_dtype(s.sparse), device=device),
            s.sparse,
        )
        for s in stages
        if s.sparse is not None
    ]
    return Factors(
        tuple(torch.empty(s.shape, dtype=dtype, device=device) for s in links),
        tuple(s.groups for s in links),
        tuple(pivots) if any(pivots) else (),
        terms[0] if terms else None,
    )


def _n_pivots(stage: Stage) -> int:
    """Channels of each group that are pivots: the length of the stored tensor's other axis."""
    return stage.shape[1] if stage.pivots == 0 else stage.shape[0] // stage.groups


def whole(tensor: Tensor, groups: int, pivots: Pivots | None) -> Tensor:
    """Join what is stored of a factor with the identity that is not."""
    if pivots is None:
        return tensor
    stored = tensor.flatten(1).unflatten(0, (groups, -1))
    n_pivots = _n_pivots(Stage(tuple(tensor.shape), groups, pivots.axis))
    identity = torch.eye(n_pivots, dtype=tensor.dtype, device=tensor.device)
    joined = torch.cat([identity.expand(groups, -1, -1), stored], dim=1 + pivots.axis)
    if pivots.axis:
        joined = joined.mT
    # Which row is which channel within its group; where each channel is among the rows.
    n_first = groups * n_pivots
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
