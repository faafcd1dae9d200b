"""Pivots left out: the same factors of the same rank, in r^2 numbers less.

W = L R of rank r, L of shape (m, r) and R of shape (r, n), is the same for L M and M^-1 R with
any invertible M: r^2 of the r (m + n) numbers say nothing. M is chosen such that r rows of L, the
pivots, become an identity matrix, which need not be stored: W's pivot rows are kept as they are,
and each of the others is a combination of them. What is stored are r (m + n - r) numbers and the
order of the rows. The same with columns, where it is the first factor that has no kernel.

It is the interpolative decomposition of a low-rank matrix. How well it is conditioned depends on
the pivots alone: those of Gaussian elimination with partial pivoting, then exchanged until no
coefficient is above `BOUND`, so that rounding is amplified no more than that in any matrix. Both
steps are products and triangular solutions, on a GPU too, where a QR decomposition with pivoting
is not to be had; and that one does not bound the coefficients.

References: Zhao et al. 2025, arXiv 2501.19090 (PIFA); Cheng et al. 2005, "On the compression of
low rank matrices" (interpolative decomposition); Goreinov et al. 2010, "How to find a good
submatrix" (exchanges).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ..protocols import Factors, Pivots, Stage, Storage

# Largest coefficient with which a row may depend on a pivot. Closer to 1 more rows would have
# to be exchanged, for no digit gained.
BOUND = 2.0


def pivot_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Choose rows on which all rows depend, with coefficients that are nowhere above `BOUND`.

    matrix : Tensor of shape (m, r), m >= r, of any condition and rank

    Returns the order (m,) of the rows, pivots first, and the coefficients (m - r, r) in
    float64: `matrix[order[r:]] = coefficients @ matrix[order[:r]]`. O(m r^2), and O(m r) for
    each exchange, of which there are few.
    """
    m, r = matrix.shape
    if m == r:
        return torch.arange(m, device=matrix.device), matrix.new_empty(0, r, dtype=torch.float64)
    # Orthonormal columns have the same dependences, and are never dependent themselves.
    basis = torch.linalg.qr(matrix.to(torch.float64)).Q
    triangles, swaps = torch.linalg.lu_factor(basis)
    rows = list(range(m))
    for i, j in enumerate(swaps.tolist()):
        rows[i], rows[j - 1] = rows[j - 1], rows[i]
    coefficients = torch.linalg.solve_triangular(
        triangles[:r], triangles[r:], upper=False, left=False, unitriangular=True
    )
    exchanged = False
    while True:
        row, pivot = divmod(int(coefficients.abs().argmax()), r)
        largest = coefficients[row, pivot].item()
        if abs(largest) <= BOUND:
            break
        exchanged = True
        rows[pivot], rows[r + row] = rows[r + row], rows[pivot]
        # Of all rows, the change of coefficients on the new pivots; the old pivot is a row now.
        change = coefficients[row] / largest
        change[pivot] -= 1 / largest
        coefficients.addr_(coefficients[:, pivot].clone(), change, alpha=-1)
        coefficients[row] = -change
        coefficients[row, pivot] += 1
    order = torch.tensor(rows, device=matrix.device)
    if exchanged:  # without what rounding has added up
        coefficients = torch.linalg.solve(basis[order[:r]], basis[order[r:]], left=False)
    return order, coefficients


def _ends(stages: Sequence[Stage]) -> tuple[bool, bool]:
    """Whether columns of the first factor and rows of the last can be left out; of links alone.

    Each needs a neighbour that takes up what makes an identity of its pivots; of two
    factors without kernel only one can, and it is the last.
    """
    last = len(stages) > 1 and _is_matrix(stages[-1], 0) and stages[-2].groups == 1
    first = len(stages) > 1 + last and _is_matrix(stages[0], 1) and stages[1].groups == 1
    return first, last


def _is_matrix(stage: Stage, long_axis: int) -> bool:
    plain = stage.groups == prod(stage.shape[2:]) == 1 and stage.pivots is None
    return plain and stage.shape[long_axis] >= stage.shape[1 - long_axis]


def _without_pivots(stage: Stage, axis: int) -> tuple[Stage, ...]:
    """Shape of what is stored of a stage; none where it is nothing but an identity."""
    sizes = list(stage.shape)
    sizes[axis] -= sizes[1 - axis]
    return (Stage(tuple(sizes), pivots=axis),) if sizes[axis] else ()


def pivoted_stages(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Shapes of `pivoted_factors` of factors with these shapes."""
    links, terms = _links(stages)
    first, last = _ends(links)
    inner = links[first : len(links) - last]
    before = _without_pivots(links[0], 1) if first else ()
    return (*before, *inner, *(_without_pivots(links[-1], 0) if last else ()), *terms)


def _links(stages: Sequence[Stage]) -> tuple[list[Stage], list[Stage]]:
    """Tell the factors from what is added to their product."""
    return [s for s in stages if s.sparse is None], [s for s in stages if s.sparse is not None]


def pivoted_factors(factors: Factors) -> Factors:
    """Leave the pivots out of the outer factors without kernel; the same product.

    A factor that is square is taken up by its neighbour altogether.
    """
    first, last = _ends(_links(factors.stages)[0])
    kept = slice(int(first), len(factors.tensors) - last)
    tensors = [t.to(torch.float64) for t in factors.tensors[kept]]
    groups = list(factors.groups[kept])
    pivots: list[Pivots | None] = [None] * len(tensors)
    if last:
        end = factors.tensors[-1]
        matrix = end.flatten(1).to(torch.float64)
        order, coefficients = pivot_rows(matrix)
        mixing = matrix[order[: matrix.shape[1]]]
        tensors[-1] = torch.tensordot(mixing, tensors[-1], dims=([1], [0]))
        if len(coefficients):
            tensors.append(coefficients.reshape(-1, *end.shape[1:]))
            groups.append(1)
            pivots.append(Pivots(0, order))
    if first:
        end = factors.tensors[0]
        matrix = end.flatten(1).to(torch.float64)
        order, coefficients = pivot_rows(matrix.mT)
        mixing = matrix[:, order[: len(matrix)]]
        tensors[0] = torch.tensordot(tensors[0], mixing, dims=([1], [0])).movedim(-1, 1)
        if len(coefficients):
            tensors.insert(0, coefficients.mT.reshape(len(end), -1, *end.shape[2:]))
            groups.insert(0, 1)
            pivots.insert(0, Pivots(1, order))
    dtype = factors.tensors[0].dtype
    return Factors(
        tuple(t.to(dtype) for t in tensors),
        tuple(groups),
        tuple(pivots) if any(pivots) else (),
        factors.sparse,
    )


class Pivot(Storage):
    """Stores factors without the numbers that say nothing.

    Same ranks, same errors, same weights; at a bond of r channels between two factors, of which
    the outer one has no kernel, r^2 numbers fewer. Where there is no such bond (both factors of
    "spatial" have a kernel) everything is as it was.

    References: Zhao et al. 2025, arXiv 2501.19090.

    >>> import torch
    >>> factors = Factors((torch.randn(10, 30), torch.randn(20, 10)), (1, 1))
    >>> sum(t.numel() for t in Pivot().stored(factors).stored)  # instead of 500
    400
    """

    suffix = ", pivoted"
    leaves_pivots = True

    def stages(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        return pivoted_stages(stages)

    def stored(self, factors: Factors) -> Factors:
        return pivoted_factors(factors)
