"""As many values of each weight as it has among the largest of all."""

from __future__ import annotations

from collections.abc import Sequence

from ..protocols import Prunable
from ..ranking import numbers_kept


def numbers_of_largest(weights: Sequence[Prunable], n_kept: int) -> list[int]:
    """Count the values of each weight that have the largest scores; no less than its `least`."""
    counts: dict[int, int] = {}
    open_ = list(range(len(weights)))
    # What gets its least leaves fewer values for the others, which may bring more to theirs.
    while open_:
        left = n_kept - sum(counts.values())
        found = numbers_kept([weights[i].scores for i in open_], left)
        short = {i: weights[i].least for i, n in zip(open_, found, strict=True)
                 if n < weights[i].least}  # fmt: skip
        if not short:
            counts.update(zip(open_, found, strict=True))
            break
        counts.update(short)
        open_ = [i for i in open_ if i not in short]
    return [counts[i] for i in range(len(weights))]
