"""The same fraction of parameters in every layer."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import BudgetError
from ..protocols import Allocation, Choice, Layer, Prunable, SparsityAllocation
from .options import least_error, pooled_options
from .shares import in_proportion


class Uniform(Allocation, SparsityAllocation):
    """Every layer keeps at most the fraction `rank` of its own weights, or the same share of zeros.

    Simple and predictable, but it ruins small layers: prefer "global". A layer that no
    rank makes smaller stays dense; one that can shrink, but not that far, is an error.
    """

    def allocate(self, layers: Sequence[Layer], rank: float, n_fixed: float) -> list[Choice | None]:
        choices: list[Choice | None] = []
        for layer in layers:
            options = pooled_options(layer)
            if len(options.costs) == 1:  # dense is all there is
                choices.append(None)
                continue
            # Tolerance for fractions that are not exact in binary, such as 0.3.
            position = least_error(options, rank * layer.dense + 1e-6)
            if position is None:
                smallest = options.costs.min() / layer.dense
                hint = f"leave it out with exclude=[{layer.name!r}], or use allocation='global'"
                raise BudgetError(rank, smallest, f"layer {layer.name!r}", hint)
            choices.append(options.choice(position))
        return choices

    def divide(self, weights: Sequence[Prunable], n_kept: int) -> list[int]:
        return in_proportion(weights, [weight.size for weight in weights], n_kept)
