"""What singular values say about ranks: the energy that one keeps, and what it stores."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from ..linalg import tail_energies
from ..protocols import Spectrum


def pooled_values(spectrum: Spectrum) -> np.ndarray:
    """Singular values (k,), descending; root mean squares over the groups where there are any.

    All groups of a compressed layer have the same rank, so the squares of these are what
    each further rank adds to the layer's energy.

    >>> pooled_values(Spectrum(np.array([[7.0, 1.0], [1.0, 1.0]]), (2, 2))).tolist()
    [5.0, 1.0]
    """
    return np.sqrt(np.mean(np.square(np.atleast_2d(spectrum.values)), axis=0))


def lost_energy(spectrum: Spectrum) -> np.ndarray:
    """Share (k,) of the squared norm that truncation to rank 1, 2, ..., k loses.

    An all-zero weight loses nothing at any rank.
    """
    values = pooled_values(spectrum)
    total = np.square(values).sum()
    tails = tail_energies(torch.from_numpy(values)).numpy()
    return tails / total if total > 0 else tails


def rank_keeping(spectrum: Spectrum, energy: float) -> int:
    """Give the smallest rank, of every group, that keeps this share of the squared norm.

    >>> rank_keeping(Spectrum(np.array([3.0, 1.0, 0.0]), (3, 8)), energy=0.9)
    1
    """
    # The tolerance of `allocation="energy"`.
    return 1 + int(np.argmax(lost_energy(spectrum) <= (1 - energy) + 1e-10))


def stored_share(spectrum: Spectrum, energy: float) -> float:
    """Numbers that factors which keep `energy` store, as a share of the weight's; at most 2."""
    rows, columns = spectrum.shape
    return rank_keeping(spectrum, energy) * (rows + columns) / (rows * columns)


def total_share(spectra: Iterable[Spectrum], energy: float) -> float:
    """Share of all these weights' parameters that is left when each keeps `energy`.

    A weight that does not get smaller by it stays as it is.
    """
    spectra = list(spectra)
    shares = [min(1.0, stored_share(spectrum, energy)) for spectrum in spectra]
    sizes = [len(np.atleast_2d(s.values)) * s.shape[0] * s.shape[1] for s in spectra]
    return float(np.average(shares, weights=sizes))
