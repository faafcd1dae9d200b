"""How the numbers of factors are kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np
from sklearn.base import BaseEstimator

from ..spaces import SearchSpace
from .factors import Factors, Stage


class Storage(BaseEstimator, ABC):
    """Turns factors into what is stored of them, with the same product.

    suffix : what it adds to the name of a scheme in reports
    leaves_pivots : whether it leaves out pivots, which not every kind of layer can do without
    """

    search_space: ClassVar[SearchSpace] = {}
    suffix: ClassVar[str] = ""
    leaves_pivots: ClassVar[bool] = False

    @abstractmethod
    def stages(self, stages: Sequence[Stage]) -> tuple[Stage, ...]:
        """Shapes of what is stored of factors with these shapes.

        One for each of `stored(factors).stored`, in that order.
        """

    @abstractmethod
    def stored(self, factors: Factors) -> Factors:
        """Give what is stored of factors."""

    def numbers(self, whole: np.ndarray, chains: Iterable[Sequence[Stage]]) -> np.ndarray:
        """How many numbers are stored of each of several chains of factors, int array (n,).

        whole : int array (n,), numbers of the factors; chains : their shapes
        """
        kept = [sum(stage.size for stage in self.stages(chain)) for chain in chains]
        return np.array(kept, dtype=whole.dtype)
