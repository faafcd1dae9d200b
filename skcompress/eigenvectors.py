"""Singular vectors of small singular values, which a Gram matrix in float32 drowns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Share of the largest energy below which directions are solved again.
_DROWNED = 1e-2


class LeftVectors(NamedTuple):
    """Singular values of M (m, n), m <= n, ascending, and their left vectors Q.

    values : Tensor (m,)
    vectors : Tensor Q (m, m)
    projected : Tensor Q^T M (m, n), row i of the length of value i; None where it was not needed
    """

    values: Tensor
    vectors: Tensor
    projected: Tensor | None


def left_vectors(short: Tensor, gram: Tensor) -> LeftVectors:
    """Solve the eigenproblem of a Gram matrix, and its small end again.

    short : float32 or float64 Tensor M of shape (m, n), m <= n
    gram : Tensor (m, m), whose lower triangle is that of M M^T

    The vectors of a Gram matrix in float32 are off by about 1e-7 of the largest energy divided by
    their own. Those of small energies are therefore turned until they map to nothing that large
    ones map to, and solved among themselves, in float64: r of them cost O(r m n) more.
    """
    energies, vectors = torch.linalg.eigh(gram, UPLO="L")
    energies = energies.clamp_(min=0)
    n_low = int((energies < _DROWNED * energies[-1]).sum())
    if not n_low or short.dtype == torch.float64:
        return LeftVectors(energies.sqrt(), vectors, None)
    low, high = vectors.double().split([n_low, len(vectors) - n_low], dim=1)
    exact = short.double()
    mixed = high.mT @ (exact @ (exact.mT @ low))
    small, large = energies[:n_low].double(), energies[n_low:, None].double()
    # Those of nearly equal size may mix: any basis of what they span has singular vectors.
    turn = torch.where(small < large / 2, mixed / (large - small), 0)
    low, high = low - high @ turn, high + low @ turn.mT
    rest = low.mT @ exact
    found, inner = torch.linalg.eigh(rest @ rest.mT)
    values = torch.cat([found.clamp_(min=0), energies[n_low:].double()]).sqrt()
    vectors = torch.cat([low @ inner, high], dim=1).to(short.dtype)
    projected = torch.cat([(inner.mT @ rest).to(short.dtype), vectors[:, n_low:].mT @ short])
    return LeftVectors(values.to(short.dtype), vectors, projected)
