"""How a budget is divided over the weights of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from sklearn.base import BaseEstimator
from torch import Tensor

from ..spaces import SearchSpace
from .decomposition import Curve


@dataclass(frozen=True)
class Layer:
    """One weight as an allocation sees it.

    Costs are stored numbers, or whatever else the budget is one of.

    dense : float
        Cost when it is left as it is, at no error.
    curves : tuple of Curve
        One for each way of cutting it up; they compete.
    importance : float
        How much its relative error counts, against those of the other layers.
    """

    name: str
    dense: float
    curves: tuple[Curve, ...]
    importance: float = 1.0


@dataclass(frozen=True)
class Choice:
    """Option `option` of curve `curve` of a layer. "Dense" is None instead of a choice."""

    curve: int
    option: int


class Allocation(BaseEstimator, ABC):
    """Divides a budget over the layers. It sees numbers only."""

    search_space: ClassVar[SearchSpace] = {}

    @abstractmethod
    def allocate(self, layers: Sequence[Layer], rank: float, n_fixed: float) -> list[Choice | None]:
        """Choose for every layer one option, or None to leave it dense.

        rank : the user's number in (0, 1]; what it is a fraction of is the allocation's
            to say.
        n_fixed : cost outside `layers` that counts towards a budget of the model.

        A number that cannot be reached is a `skcompress.errors.BudgetError`. A choice
        never costs more than `dense`.
        """


@dataclass(frozen=True)
class Prunable:
    """One weight as an allocation of zeros sees it.

    shape : (groups, out, in, *kernel)
    least : how many of its numbers have to stay
    scores : gives the criterion's importances, of this shape; the same ones at every call
    weight : gives the values, of this shape
    distortion : gives, for numbers of values kept, what the outputs of the network lose when the
        others become zero; None unless asked for by `needs` with data
    """

    name: str
    shape: tuple[int, ...]
    least: int
    scores: Callable[[], Tensor]
    weight: Callable[[], Tensor]
    distortion: Callable[[Sequence[int]], Sequence[float]] | None = None

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return int(np.prod(self.shape, dtype=np.int64))


class SparsityAllocation(BaseEstimator, ABC):
    """Divides a number of values that stay over the weights of a model.

    needs : ("distortion",) where it uses that, predicted to second order from one pass over the
        data; ("measured_distortion",) where it is to be measured by runs of the network
    """

    @property
    def needs(self) -> tuple[str, ...]:
        """What of `Prunable` data has to say."""
        return ()

    @abstractmethod
    def divide(self, weights: Sequence[Prunable], n_kept: int) -> list[int]:
        """Say how many values of each weight stay: from its `least` to its `size`.

        n_kept : what they add up to, no less than all `least` and no more than all `size`
        """
