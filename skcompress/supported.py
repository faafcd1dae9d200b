"""Least squares on a given support: the values of the numbers that stay, row by row.

Row r of a weight (out, n) may be non-zero on its support S_r only. What it gives best is
w_S = A_SS^-1 c_S, with the second moment A of its inputs and its cross moment c: as many systems
as there are rows, each with a matrix of its own. Rows with supports of about the same size are
solved together, rows without zeros with one factorisation for all.

Setting one more number to zero, with the others of the row making up for it, costs
w_j^2 / [A_SS^-1]_jj (Hassibi & Stork 1993).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .linalg import cholesky

# Numbers of the systems that are solved at the same time.
_AT_ONCE = 1 << 24


class Supported(NamedTuple):
    """Values (out, n), zero outside the support, and what each costs; None if not asked for."""

    values: Tensor
    costs: Tensor | None


def supported_least_squares(
    gram: Tensor, cross: Tensor, kept: Tensor, *, costs: bool = False
) -> Supported:
    """Give W, zero outside `kept`, with the least tr(W A W^T) - 2 tr(C W^T).

    gram : A (n, n), positive definite; cross : C (out, n); kept : bool (out, n)
    costs : whether to give also by how much each number that is set to zero raises this, once
        the others of its row make up for it; zero outside `kept`

    O(sum over rows of |S|^3). In the dtype of `gram`, which should be float64.
    """
    found = torch.zeros_like(cross), torch.zeros_like(cross) if costs else None
    for rows, size in _batches(kept.sum(1), len(gram)):
        # Members first, in their order; what fills up the shorter supports comes after.
        index = kept[rows].to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :size]
        inside = kept[rows].gather(1, index)
        goals = cross[rows].gather(1, index) * inside
        if size == len(gram):
            root = cholesky(gram)
            solved = torch.cholesky_solve(goals.mT, root).mT
            diagonal = torch.cholesky_inverse(root).diagonal() if costs else None
        else:
            roots = _roots(gram, index, inside)
            solved = torch.cholesky_solve(goals[..., None], roots)[..., 0]
            diagonal = _diagonal_of_inverse(roots) if costs else None
        parts = [solved] if diagonal is None else [solved, solved.square() / diagonal]
        for whole, part in zip(found, parts, strict=False):
            assert whole is not None
            whole[rows] = torch.zeros_like(cross[rows]).scatter_(1, index, part * inside)
    return Supported(*found)


def _batches(sizes: Tensor, n: int) -> Iterator[tuple[Tensor, int]]:
    """Yield rows that are solved together, and the size of their largest support."""
    order = sizes.argsort()
    start = int((sizes == 0).sum())
    stop_partial = len(order) - int((sizes == n).sum())
    ordered = sizes[order].tolist()
    while start < stop_partial:
        stop = start + 1
        while stop < stop_partial:
            # The systems are filled up to the size of the largest.
            many = (stop + 1 - start) * ordered[stop] ** 2 > _AT_ONCE
            if many or ordered[stop] > 1.1 * ordered[start] + 8:
                break
            stop += 1
        yield order[start:stop], ordered[stop - 1]
        start = stop
    if stop_partial < len(order):
        yield order[stop_partial:], n


def _roots(gram: Tensor, index: Tensor, inside: Tensor) -> Tensor:
    """Cholesky factors of the systems of some rows, with ones where a support is filled up."""
    systems = gram[index[:, :, None], index[:, None, :]]
    systems *= (inside[:, :, None] & inside[:, None, :]).to(systems.dtype)
    systems.diagonal(dim1=1, dim2=2).add_((~inside).to(systems.dtype))
    roots, failed = torch.linalg.cholesky_ex(systems)
    for i in failed.nonzero()[:, 0].tolist():
        roots[i] = cholesky(systems[i])
    return roots


def _diagonal_of_inverse(roots: Tensor) -> Tensor:
    """Diagonals (rows, size) of the inverses, from Cholesky factors."""
    identity = torch.eye(roots.shape[-1], dtype=roots.dtype, device=roots.device)
    inverse = torch.linalg.solve_triangular(roots, identity, upper=False)
    return inverse.square().sum(1)
