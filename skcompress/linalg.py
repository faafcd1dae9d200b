"""Matrix factorisations for decompositions and regularizers: tensors in, tensors out.

Truncated factorisations go through the eigenproblem of the smaller Gram matrix, which on
a CPU is an order of magnitude faster than `torch.linalg.svd` of a wide matrix. Forming a
Gram matrix squares the condition number, so it is done in two steps:

1. In float32. Eigenvectors are off by about 1e-7 divided by the gap between eigenvalues,
   and what a subspace captures depends on that error squared: for the directions that
   hold all but `_SAFE` of the energy this is as good as exact.
2. The small rest is projected out of the matrix, where it is no longer drowned by the
   large directions, and solved again, in float64. In a well-conditioned matrix there is
   no rest.

Errors of truncation then reach the optimum (Eckart & Young 1936) to 1e-6 of the norm,
whatever the condition. Matrices that are float64 already take `torch.linalg.svd`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Share of the energy below which directions are solved again in float64.
_SAFE = 1e-2
# Columns converted to a higher precision at a time, so that no copy of the weight is made.
_CHUNK = 2048
# Rows per block of the Gram matrix; only blocks on and below the diagonal are computed.
_BLOCK = 128


class Subspace(NamedTuple):
    """Singular values of a matrix with the singular vectors of its shorter side.

    values : float64 Tensor of shape (k,), descending, k = min(rows, columns)
    vectors : Tensor of shape (k, k) in the matrix's dtype, column i belongs to value i
    """

    values: Tensor
    vectors: Tensor


def lower_gram(matrix: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Lower triangle of `matrix @ matrix.T`, computed in `dtype`.

    matrix : Tensor of shape (m, n), any strides
    Returns a Tensor (m, m) of which nothing above the diagonal is to be read.
    """
    m, n = matrix.shape
    out = torch.zeros(m, m, dtype=dtype, device=matrix.device)
    for start in range(0, n, _CHUNK):
        part = matrix[:, start : start + _CHUNK].to(dtype)
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

    O(mn min(m, n)). Rank-deficient, zero, repeated, huge and tiny singular values are
    fine. The leading columns span the best subspace of their dimension.
    """
    short = short_side(matrix)
    if matrix.dtype == torch.float64:
        left, values, _ = torch.linalg.svd(short, full_matrices=False)
        return Subspace(values, left)
    scale = short.abs().amax()
    if scale == 0:
        m = short.shape[0]
        zeros = torch.zeros(m, dtype=torch.float64, device=matrix.device)
        return Subspace(zeros, torch.eye(m, dtype=matrix.dtype, device=matrix.device))
    if 1e-9 < scale < 1e9:
        scale = torch.ones_like(scale)
        scaled = short
    else:  # the squares of such weights leave the range of float32
        scaled = short / scale
    energies, vectors = _descending_eigh(lower_gram(scaled, torch.float32))
    energies = energies.to(torch.float64)
    tails = energies.flip(0).cumsum(0).flip(0)
    n_safe = int((tails > _SAFE * tails[0]).sum())
    if n_safe < len(energies):
        rest = vectors[:, n_safe:]
        energies[n_safe:], turned = _descending_eigh(lower_gram(rest.mT @ scaled))
        vectors[:, n_safe:] = rest @ turned.to(rest.dtype)
    return Subspace(energies.sqrt() * scale.to(torch.float64), vectors)


def _descending_eigh(lower: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (k,), none negative, largest first, and eigenvectors of a lower triangle."""
    values, vectors = torch.linalg.eigh(lower, UPLO="L")
    return values.flip(0).clamp_(min=0), vectors.flip(1)


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
