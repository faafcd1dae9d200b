"""Least squares on a given support: the values of the numbers that stay, row by row.

Row r of a weight (out, n) may be non-zero on its support S_r only. What it gives best is
w_S = A_SS^-1 c_S, with the second moment A of its inputs and its cross moment c: as many systems
as there are rows, each with a matrix of its own. Rows with supports of about the same size are
solved together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .linalg import cholesky

# Numbers of the systems that are solved at the same time.
_AT_ONCE = 1 << 24


def supported_least_squares(gram: Tensor, cross: Tensor, kept: Tensor) -> Tensor:
    """Give W (out, n), zero outside `kept`, with the least tr(W A W^T) - 2 tr(C W^T).

    gram : A (n, n), positive definite; cross : C (out, n); kept : bool (out, n)

    O(sum over rows of |S|^3). In the dtype of `gram`, which should be float64.
    """
    sizes = kept.sum(1)
    order = sizes.argsort()
    result = torch.zeros_like(cross)
    start = 0
    while start < len(order):
        stop = _end_of_batch(sizes, order, start)
        rows = order[start:stop]
        size = int(sizes[rows[-1]])
        if size:
            _solve(gram, cross, kept, rows, size, result)
        start = stop
    return result


def _end_of_batch(sizes: Tensor, order: Tensor, start: int) -> int:
    """Where the rows end that are solved together with the one at `start`."""
    stop = start + 1
    while stop < len(order):
        size = int(sizes[order[stop]])
        # The systems are filled up to the size of the largest.
        if (stop + 1 - start) * size**2 > _AT_ONCE or size > 1.1 * int(sizes[order[start]]) + 8:
            break
        stop += 1
    return stop


def _solve(
    gram: Tensor, cross: Tensor, kept: Tensor, rows: Tensor, size: int, result: Tensor
) -> None:
    """Solve for some rows, whose supports have `size` members at most, into `result`."""
    member = kept[rows]
    # Members first, each in its place's order; what fills up the shorter ones comes after.
    index = member.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :size]
    inside = member.gather(1, index)
    systems = gram[index[:, :, None], index[:, None, :]]
    systems *= (inside[:, :, None] & inside[:, None, :]).to(systems.dtype)
    systems.diagonal(dim1=1, dim2=2).add_((~inside).to(systems.dtype))
    goals = (cross[rows].gather(1, index) * inside)[..., None]
    roots, failed = torch.linalg.cholesky_ex(systems)
    for i in failed.nonzero()[:, 0].tolist():
        roots[i] = cholesky(systems[i])
    solved = torch.cholesky_solve(goals, roots)[..., 0]
    result[rows] = torch.zeros_like(cross[rows]).scatter_(1, index, solved * inside)
