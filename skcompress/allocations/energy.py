"""The same fraction of spectral energy in every layer."""

from __future__ import annotations

from collections.abc import Sequence

from ..protocols import Allocation, Choice, Layer
from .options import least_cost, pooled_options


class Energy(Allocation):
    """Every layer keeps at least the fraction `rank` of its spectral energy.

    The energy is the sum of squared singular values (in the metric); the cheapest option
    that keeps enough is taken. The size of the result is not known beforehand.
    """

    def allocate(self, layers: Sequence[Layer], rank: float, n_fixed: float) -> list[Choice | None]:
        # Errors of float32 weights are known to 1e-5 of the norm, energies to its square.
        lost = (1 - rank) + 1e-10
        pooled = [pooled_options(layer) for layer in layers]
        return [options.choice(least_cost(options, lost)) for options in pooled]
