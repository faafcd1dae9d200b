"""More of the values of small and narrow weights: Erdos-Renyi with kernels."""

from __future__ import annotations

from collections.abc import Sequence

from ..protocols import Prunable, SparsityAllocation
from .shares import in_proportion


class ERK(SparsityAllocation):
    """The number kept grows with the sum of a weight's axes, not with their product.

    As many connections as a random graph with a given mean degree has, (out + in + kernel axes),
    for each group. Needs shapes only.

    References: Mocanu et al. 2018 (doi 10.1038/s41467-018-04316-3); Evci et al. 2020,
    arXiv 1911.11134 (kernels).
    """

    def divide(self, weights: Sequence[Prunable], n_kept: int) -> list[int]:
        return in_proportion(weights, [w.shape[0] * sum(w.shape[1:]) for w in weights], n_kept)
