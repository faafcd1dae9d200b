"""Inverse square roots by matrix products alone, which is what a GPU does best."""

from __future__ import annotations

import torch
from torch import Tensor

# Polynomials a + b y + c y^2 of the Polar Express for singular values down to 1e-3 (Amsel et
# al. 2025, arXiv 2505.16932, table of the published implementation); the last one repeats.
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)


def inverse_root(gram: Tensor) -> Tensor:
    """Give (G + d I)^(-1/2) of Gram matrices (..., m, m) by matrix products alone.

    d is 2e-7 of the largest eigenvalue, so that what rounding leaves of the
    smallest ones stays positive. The polar iteration X <- p(X X^T) X is carried out on
    X X^T, which for a wide X is the smaller matrix.
    """
    m = gram.shape[-1]
    identity = torch.eye(m, dtype=gram.dtype, device=gram.device)
    size = torch.linalg.matrix_norm(gram, keepdim=True).clamp(min=torch.finfo(gram.dtype).tiny)
    state = gram / (1.01 * size) + 2e-7 * identity
    root = identity
    for a, b, c in _POLAR_EXPRESS:
        step = a * identity + b * state + c * (state @ state)
        root = step @ root
        state = step @ state @ step
    return root / (1.01 * size).sqrt()
