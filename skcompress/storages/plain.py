"""Factors as they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ..protocols import Factors, Stage, Storage


class Plain(Storage):
    """Stores every number of every factor: chains of ordinary layers."""

    def stages(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        return tuple(stages)

    def stored(self, factors: Factors) -> Factors:
        return factors

    def numbers(self, whole: np.ndarray, chains: Iterable[Sequence[Stage]]) -> np.ndarray:
        return whole
