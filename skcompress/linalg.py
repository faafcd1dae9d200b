"""Matrix factorisations for decompositions and regularizers: tensors in, tensors out.

Truncated factorisations go through the eigenproblem of the smaller Gram matrix, which
on a CPU is 5 to 12 times faster than `torch.linalg.svd` of a wide matrix. Forming the
Gram matrix squares the condition number, so it is formed and solved in float64: for a
float32 weight the singular values are then exact down to 1e-8 of the largest, below the
rounding of the weight itself. Weights that are float64 already take the direct route.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Columns converted to float64 at a time, so that no float64 copy of the weight is made.
_CHUNK = 2048
# Rows per block of the Gram matrix; only blocks on and below the diagonal are computed.
_BLOCK = 128


class Subspace(NamedTuple):
    """Singular values of a matrix with the singular vectors of its shorter side.

    values : float64 Tensor of shape (k,), descending, k = min(rows, columns)
    vectors : float64 Tensor of shape (k, k), column i belongs to value i
    """

    values: Tensor
    vectors: Tensor


def lower_gram(matrix: Tensor) -> Tensor:
    """Lower triangle of `matrix @ matrix.T` in float64, whatever the precision of `matrix`.

    matrix : Tensor of shape (m, n), any floating dtype, any strides
    Returns a Tensor (m, m) of which nothing above the diagonal is to be read.
    """
    m, n = matrix.shape
    out = torch.zeros(m, m, dtype=torch.float64, device=matrix.device)
    for start in range(0, n, _CHUNK):
        part = matrix[:, start : start + _CHUNK].to(torch.float64)
        for row in range(0, m, _BLOCK):
            block = part[row : row + _BLOCK]
            stop = row + block.shape[0]
            out[row:stop, :stop].addmm_(block, part[:stop].mT)
    return out


def short_side(matrix: Tensor) -> Tensor:
    """View `matrix` with no more rows than columns."""
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT


def leading_subspace(matrix: Tensor) -> Subspace:
    """Singular values and short-side singular vectors of `matrix` (m, n).

    O(mn min(m, n)). Rank-deficient, zero and repeated singular values are fine.
    Eckart & Young 1936 make the leading columns the best subspace of their dimension.
    """
    short = short_side(matrix)
    if matrix.dtype == torch.float64:
        left, values, _ = torch.linalg.svd(short, full_matrices=False)
        return Subspace(values, left)
    energies, vectors = torch.linalg.eigh(lower_gram(short), UPLO="L")
    return Subspace(energies.flip(0).clamp_(min=0).sqrt_(), vectors.flip(1))


def tail_energies(values: Tensor) -> Tensor:
    """Squared norm lost at rank 1, 2, ..., k from singular values (k,), largest first.

    Summed from the small end, so that tiny tails are not lost in the total.
    """
    energies = values.square()
    kept = energies.flip(-1).cumsum(-1).flip(-1)
    return torch.cat([kept[..., 1:], torch.zeros_like(kept[..., :1])], dim=-1)


def balanced_factors(matrix: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Split the projection of `matrix` on `basis` into two factors of equal size.

    matrix : Tensor of shape (m, n)
    basis : Tensor of shape (min(m, n), r) with orthonormal columns, on the shorter side

    Returns (left, right) of shapes (m, r) and (r, n). Row i of `right` has the norm of
    column i of `left`: half precision loses least that way, and training the factors
    starts from balanced gradients.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    basis = basis.to(matrix.dtype)
    if tall:
        other = matrix @ basis
        scale = other.norm(dim=0)
    else:
        other = basis.mT @ matrix
        scale = other.norm(dim=1)
    root = scale.sqrt()
    # A direction without energy keeps its unit vector on one side and zeros on the other.
    inverse = torch.where(root > 0, 1 / root, torch.zeros_like(root))
    if tall:
        return other * inverse, root[:, None] * basis.mT
    return basis * root, inverse[:, None] * other
