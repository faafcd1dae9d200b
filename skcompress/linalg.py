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

from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from .eigenvectors import left_vectors
from .polar_express import inverse_root

# Share of the energy below which directions are solved again in float64.
_SAFE = 1e-2
# Share of the energy below which a direction of a least-squares problem says nothing.
_SILENT = 1e-7
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


def lower_gram(
    matrix: Tensor, dtype: torch.dtype = torch.float64, basis: Tensor | None = None
) -> Tensor:
    """Lower triangle of `matrix @ matrix.T`, computed in `dtype`.

    matrix : Tensor of shape (m, n), any strides
    basis : Tensor of shape (m, k); where given, of `basis.T @ matrix` in place of the matrix
    Returns a Tensor (m, m), or (k, k), of which nothing above the diagonal is to be read.
    """
    m, n = matrix.shape[0] if basis is None else basis.shape[1], matrix.shape[1]
    out = torch.zeros(m, m, dtype=dtype, device=matrix.device)
    for start in range(0, n, _CHUNK):
        part = matrix[:, start : start + _CHUNK]
        part = (part if basis is None else basis.mT @ part).to(dtype)
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
    scaled, gram, scale = scaled_gram(short)
    energies, vectors = _descending_eigh(gram)
    energies = energies.to(torch.float64)
    tails = energies.flip(0).cumsum(0).flip(0)
    n_safe = int((tails > _SAFE * tails[0]).sum())
    if n_safe < len(energies):
        rest = vectors[:, n_safe:]
        energies[n_safe:], turned = _descending_eigh(lower_gram(scaled, basis=rest))
        vectors[:, n_safe:] = rest @ turned.to(rest.dtype)
    return Subspace(energies.sqrt() * scale.item(), vectors)


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


def break_even(rows: int, columns: int) -> int:
    """Largest rank at which two factors store fewer numbers than the matrix, at least 1."""
    return max(1, min((rows * columns - 1) // (rows + columns), rows, columns))


def balanced_factors(matrix: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Split the projection of `matrix` on `basis` into two factors of equal size.

    matrix : Tensor of shape (m, n)
    basis : Tensor of shape (min(m, n), r) with orthonormal columns, on the shorter side

    Returns (left, right) of shapes (m, r) and (r, n). Row i of `right` has the norm of
    column i of `left`: half precision loses least that way, and training the factors
    starts from balanced gradients.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    other = matrix @ basis if tall else basis.mT @ matrix
    root = _norms(other, 0 if tall else 1).sqrt()
    # A direction without energy keeps its unit vector on one side and zeros on the other.
    inverse = torch.where(root > 0, 1 / root, torch.zeros_like(root)).to(matrix.dtype)
    root = root.to(matrix.dtype)
    # In place: of a huge matrix this is the one more copy that decides how much memory it takes.
    if tall:
        return other.mul_(inverse), root[:, None] * basis.mT
    return basis * root, other.mul_(inverse[:, None])


def balance(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Give columns of `left` (m, r) and rows of `right` (r, n) equal norms; same product."""
    root = (_norms(right, 1) / _norms(left, 0)).sqrt()
    root = torch.where(torch.isfinite(root) & (root > 0), root, torch.ones_like(root))
    return (left * root).to(left.dtype), (right / root[:, None]).to(right.dtype)


def _norms(matrix: Tensor, dim: int) -> Tensor:
    """Norms in float64: squares of huge and of tiny values leave the range of float32."""
    # In pieces, of which torch makes copies.
    parts = matrix.split(_CHUNK, dim)
    squares = [torch.linalg.vector_norm(p, dim=dim, dtype=torch.float64).square() for p in parts]
    return torch.stack(squares).sum(0).sqrt()


def right_directions(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values (k,) and right singular vectors (n, k) of a float64 matrix (m, n).

    Largest first, k = min(m, n). The vectors are orthonormal and their leading ones span
    the best subspaces also where the matrix has a lower rank. O(mn min(m, n)).
    """
    short = short_side(matrix)
    energies, vectors = torch.linalg.eigh(short @ short.mT)
    values, vectors = energies.flip(0).clamp_(min=0).sqrt(), vectors.flip(1)
    if short is matrix:
        vectors = torch.linalg.qr((vectors.mT @ matrix).mT).Q
    return values, vectors


def cholesky(matrix: Tensor) -> Tensor:
    """Lower factor of a matrix (n, n) that is positive definite but for rounding."""
    root, failed = torch.linalg.cholesky_ex(matrix)
    # Rounding can leave a diagonal that is negative: of inputs that are all alike, for one.
    size = float(matrix.diagonal().abs().mean()) or 1.0
    shift = size * torch.finfo(matrix.dtype).eps * len(matrix)
    while failed and shift < inf:  # with NaN it would never end
        identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        root, failed = torch.linalg.cholesky_ex(matrix + shift * identity)
        shift = 10 * shift
    return root


def damped_solve(gram: Tensor, target: Tensor, start: Tensor) -> Tensor:
    """Solve X gram = target, near `start` in the directions that `gram` says nothing of.

    gram : float64 Tensor of shape (n, n), positive semi-definite but for rounding; of any scale,
        also of each row and column by itself
    target, start : (m, n)

    No number gets larger than what is left to explain justifies: a direction that holds less than
    `_SILENT` of what its coordinates hold stays as `start` has it. O(n^3 + m n^2).
    """
    sizes = gram.diagonal().clamp(min=0).sqrt()
    # Of a coordinate that is never anything but zero nothing follows.
    scale = torch.where(sizes > 0, 1 / sizes, torch.zeros_like(sizes))
    scaled = gram * scale[:, None] * scale
    scaled.diagonal().copy_(torch.ones_like(sizes) * (1 + _SILENT))
    left = (target - start @ gram) * scale
    return start + torch.cholesky_solve(left.mT, cholesky(scaled)).mT * scale


def scaled_gram(short: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gram matrix of matrices, divided first where squares would leave the range of float32.

    short : Tensor of shape (..., m, n), m <= n
    Returns the divided matrices, the lower triangles (..., m, m) of their Gram matrices, and
    what they were divided by, of shape (..., 1, 1).
    """
    # On a GPU dividing costs less than asking whether it is needed.
    if not short.is_cuda:
        gram = _gram(short)
        sizes = gram.diagonal(dim1=-2, dim2=-1).amax(-1)[..., None, None]
        if bool(((sizes > 1e-18) & (sizes < 1e18)).all()):
            return short, gram, torch.ones_like(sizes)
    scale = torch.linalg.vector_norm(short, ord=torch.inf, dim=(-2, -1), keepdim=True)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    short = short / scale
    return short, _gram(short), scale


def _gram(short: Tensor) -> Tensor:
    if short.dim() > 2 or short.is_cuda:
        return short @ short.mT
    return lower_gram(short, short.dtype)


class Spectrum(NamedTuple):
    """Singular values of matrices M (..., m, n), m <= n, and what carries functions of them.

    values : Tensor of shape (..., m), ascending; in float32 on a GPU, those below about 1e-3 of
        the largest only roughly, since their vectors are mixed with each other
    vectors : Tensor Q of shape (..., m, m), of left singular vectors
    """

    values: Tensor
    vectors: Tensor

    def multiplier(self, ratios: Tensor) -> Tensor:
        """Matrix (..., m, m) that multiplies the singular values of M by `ratios` (..., m)."""
        return (self.vectors * ratios[..., None, :]) @ self.vectors.mT


def spectrum(short: Tensor) -> Spectrum:
    """Singular values as the norms of Q^T M: small ones suffer less than as roots of energies.

    short : Tensor of shape (..., m, n), m <= n
    """
    if short.dim() > 2 and not short.is_cuda:
        return Spectrum(*_of_each(spectrum, short))
    scaled, gram, scale = scaled_gram(short)
    if short.is_cuda:
        vectors, projected = torch.linalg.eigh(gram, UPLO="L").eigenvectors, None
    else:
        _, vectors, projected = left_vectors(scaled, gram)
    values = torch.linalg.vector_norm(
        vectors.mT @ scaled if projected is None else projected, dim=-1
    )
    return Spectrum(values * scale[..., 0], vectors)


class Polar(NamedTuple):
    """Polar factor U V^T = L R of matrices M = U S V^T, and two of their norms.

    left : Tensor L of shape (..., m, m)
    right : Tensor R of shape (..., m, n), whose rows span what those of M do
    nuclear, frobenius : Tensors of shape (...)
    unit : Tensor E of shape (..., m, m), M / |M| = E R; zeros for a zero matrix
    """

    left: Tensor
    right: Tensor
    nuclear: Tensor
    frobenius: Tensor
    unit: Tensor


def polar_factor(short: Tensor) -> Polar:
    """Polar factor and norms of matrices with no more rows than columns.

    short : float32 or float64 Tensor of shape (..., m, n), m <= n

    In O(m^2 n): by eigenvectors; in float32 on a GPU by products alone, as (M M^T)^(-1/2) M.
    Directions whose singular value is below about 1e-6 of the largest (1e-3 on a GPU, 1e-7 in
    float64) count in proportion to it instead of fully. Zero matrices give zeros.
    """
    by_products = short.is_cuda and short.dtype == torch.float32
    if short.dim() > 2 and not by_products:
        return Polar(*_of_each(polar_factor, short))
    scaled, gram, scale = scaled_gram(short)
    size = scale[..., 0, 0]
    norm = gram.diagonal(dim1=-2, dim2=-1).sum(-1).sqrt()
    inverse = torch.where(norm > 0, 1 / norm, torch.zeros_like(norm))
    unit = inverse[..., None, None] * torch.eye(
        gram.shape[-1], dtype=gram.dtype, device=gram.device
    )
    if by_products:
        left = inverse_root(gram)
        return Polar(left, scaled, (left * gram).sum((-2, -1)) * size, norm * size, unit)
    values, vectors, projected = left_vectors(scaled, gram)
    eps = torch.finfo(short.dtype).eps
    floor = values[-1] * (8 * eps if short.dtype == torch.float32 else (8 * eps) ** 0.5)
    # Nothing is left to divide by in a zero matrix; the smallest normal number will do.
    lengths = torch.maximum(values, floor).clamp_(min=torch.finfo(short.dtype).tiny)
    nuclear = (values * (values / lengths)).sum() * size
    if projected is None:
        return Polar((vectors / lengths) @ vectors.mT, scaled, nuclear, norm * size, unit)
    # Products with multipliers as large as these would lose what float64 has found.
    return Polar(
        vectors, projected / lengths[:, None], nuclear, norm * size, vectors * (lengths * inverse)
    )


def _of_each(function: Callable[[Tensor], Sequence[Tensor]], matrices: Tensor) -> Iterator[Tensor]:
    """Stack what a function gives of each of matrices (..., m, n)."""
    found = [function(one) for one in matrices.flatten(0, -3)]
    for results in zip(*found, strict=True):
        yield torch.stack(results).unflatten(0, matrices.shape[:-2])
