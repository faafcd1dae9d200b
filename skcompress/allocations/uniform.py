"""The same fraction of parameters in every layer."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import BudgetError
from ..protocols import Allocation, Choice, Layer, Prunable, SparsityAllocation
from .options import least_error, pooled_options
from .shares import in_proportion


class Uniform(Allocation, SparsityAllocation):
    """Every layer keeps at most the fraction `rank` of its own weights, or the same share of zeros.

    Simple and predictable, but it ruins small layers: prefer "global". A layer that no rank makes
    that small stays dense. Where none can be, the smallest number that one can is in the error.
    """

    def allocate(self, layers: Sequence[Layer], rank: float, n_fixed: float) -> list[Choice | None]:
        choices: list[Choice | None] = []
        smallest: dict[str, float] = {}  # shares of layers that can shrink
        for layer in layers:
            options = pooled_options(layer)
            # Tolerance for fractions that are not exact in binary, such as 0.3.
            position = least_error(options, rank * layer.dense + 1e-6)
            choices.append(None if position is None else options.choice(position))
            if len(options.costs) > 1:
                smallest[layer.name] = float(options.costs.min() / layer.dense)
        if smallest and rank < min(smallest.values()):
            name = min(smallest, key=smallest.__getitem__)
            raise BudgetError(rank, smallest[name], f"layer {name!r}", "or use allocation='global'")
        return choices

    def divide(self, weights: Sequence[Prunable], n_kept: int) -> list[int]:
        return in_proportion(weights, [weight.size for weight in weights], n_kept)
