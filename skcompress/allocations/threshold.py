"""A rank per layer from an optimal threshold on its singular values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import MissingSpectrumError
from ..protocols import Allocation, Choice, Curve, Layer, Spectrum


def hard_threshold(values: np.ndarray, rows: int, columns: int) -> float:
    """Optimal hard threshold for singular values when the noise level is not known.

    values : singular values of a (rows, columns) matrix that is low rank plus white noise
    Returns the value below which keeping a direction adds more noise than signal:
    omega(beta) times the median, beta the aspect ratio (Gavish & Donoho 2014,
    arXiv 1305.5870, equation 5, accurate to 0.02).
    """
    beta = min(rows, columns) / max(rows, columns)
    omega = 0.56 * beta**3 - 0.95 * beta**2 + 1.82 * beta + 1.43
    return float(omega * np.median(values))


class Threshold(Allocation):
    """Every layer keeps the singular values above its optimal hard threshold.

    Needs no number: `rank` is not read. Where several ways of cutting a weight compete,
    the cheapest after its own threshold wins; a layer that would not get smaller stays
    dense. Weights without a noise floor that the spectrum shows (freshly initialised
    ones are nothing but noise) are cut to rank 1.
    """

    def allocate(self, layers: Sequence[Layer], rank: float, n_fixed: float) -> list[Choice | None]:
        return [self._choose(layer) for layer in layers]

    def _choose(self, layer: Layer) -> Choice | None:
        best: tuple[int, Choice] | None = None
        for number, curve in enumerate(layer.curves):
            option = self._option(layer, curve)
            cost = int(curve.costs[option])
            if cost < layer.dense and (best is None or cost < best[0]):
                best = cost, Choice(number, option)
        return None if best is None else best[1]

    @staticmethod
    def _option(layer: Layer, curve: Curve) -> int:
        """Cheapest option whose rank, every part of it, reaches its own threshold."""
        if not curve.spectra:
            raise MissingSpectrumError(layer.name, curve.scheme)
        wanted = [_rank_above_threshold(spectrum) for spectrum in curve.spectra]
        ranks = curve.ranks.reshape(len(curve.costs), -1)
        return int(np.argmax((ranks >= wanted).all(axis=1)))


def _rank_above_threshold(spectrum: Spectrum) -> int:
    groups = np.atleast_2d(spectrum.values)
    return max(1, *(int((v > hard_threshold(v, *spectrum.shape)).sum()) for v in groups))
