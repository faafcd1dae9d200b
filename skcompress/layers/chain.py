"""Factors of the groups of a layer as those of the layer."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from ..protocols import Factors, Pivots, Sparse, Stage
from ..protocols.product import n_pivots


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
    first = stage.groups * n_pivots(stage)
    order = torch.cat([o[:first] for o in orders] + [o[first:] for o in orders])
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
