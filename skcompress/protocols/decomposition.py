"""How a weight is cut up, and what each rank of it costs and loses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from sklearn.base import BaseEstimator
from torch import Tensor

from ..spaces import SearchSpace
from .factors import Factors, Stage
from .metric import Metric

Rank = int | tuple[int, ...]


@dataclass(frozen=True)
class Spectrum:
    """Singular values of one unfolding of a weight.

    values : float array of shape (k,), descending; (groups, k) for a grouped layer
    shape : (rows, columns) of the unfolding
    """

    values: np.ndarray
    shape: tuple[int, int]


@dataclass(frozen=True)
class Curve:
    """What a decomposition could do to one weight, at every rank that it offers.

    scheme : str
        Name of the way the weight is cut up, as the report shows it.
    ranks : int array of shape (n,), or (n, modes) where a rank is a tuple
    costs : int array of shape (n,)
        Stored numbers, ascending.
    errors : float array of shape (n,)
        Squared Frobenius norm, in the metric, of what is lost; where a rank is one
        number, never growing with it.
    total : float
        Squared norm of the whole weight in the same metric.
    full_rank : int or tuple
        The rank at which nothing is lost.
    spectra : tuple of Spectrum
        One for each number that a rank consists of; empty where there are none.
    """

    scheme: str
    ranks: np.ndarray
    costs: np.ndarray
    errors: np.ndarray
    total: float
    full_rank: Rank
    spectra: tuple[Spectrum, ...] = ()

    def rank_at(self, index: int) -> Rank:
        """Rank of option `index` as plain Python numbers."""
        value = self.ranks[index].tolist()
        return tuple(value) if isinstance(value, list) else value


class Factorization(ABC):
    """One weight after its expensive step: every rank is cheap from here.

    The weight itself is not kept, so that many of these fit in memory at once; it is
    handed in again when factors are wanted.
    """

    curve: Curve

    @abstractmethod
    def factors(self, weight: Tensor, rank: Rank) -> Factors:
        """Give the factors of `weight`, the tensor that was factorised, at `rank`."""

    @abstractmethod
    def trim(self, rank: Rank) -> Factorization:
        """Give what is needed at `rank`, and nothing else; this one stays as it is."""


class Decomposition(BaseEstimator, ABC):
    """Cuts a weight of shape (out, in, *kernel) into a chain of smaller ones.

    A sparse term may be added to their product; `adds_sparse` says so beforehand.

    It sees tensors, never modules: groups, tied weights, half precision and the layers
    that hold the factors are the caller's business. `weight` is a finite floating
    tensor without gradient in float32 or float64 on any device, possibly non-contiguous.
    A subclass with randomness takes a `random_state` parameter.
    """

    search_space: ClassVar[SearchSpace] = {}

    @property
    def scheme(self) -> str:
        """Short name that the report shows."""
        return type(self).__name__.lower()

    @property
    def adds_sparse(self) -> bool:
        """Whether its factors have a sparse term, which not every kind of layer takes."""
        return False

    def unsupported(self, shape: Sequence[int]) -> str | None:
        """Say why a weight of this shape cannot be cut up this way; None if it can."""
        return None

    @abstractmethod
    def factorize(
        self, weight: Tensor, metric: Metric | None = None, asked: Collection[int] = ()
    ) -> Factorization:
        """Do the expensive step for `weight` once, for all ranks.

        metric : what the factors are to give from which inputs, as second moments; errors of the
            curve are then mean squared errors of the outputs. None for the weight itself, in the
            Frobenius norm.
        asked : numbers that, as every part of a rank, have to be on offer where the method knows
            them; to be ignored where all ranks are

        The curve is empty where no rank can be fitted in the metric. A method that knows nothing
        of metrics is a :class:`WeightDecomposition`.
        """

    def factorize_at(
        self, weight: Tensor, metric: Metric, rank: Rank, known: Factorization | None = None
    ) -> Factorization:
        """`factorize` for one rank alone. To be written where that is much cheaper.

        known : what `factorize` gave for the same weight in another metric
        """
        return self.factorize(weight, metric).trim(rank)

    @abstractmethod
    def stages(self, shape: Sequence[int], rank: Rank) -> tuple[Stage, ...]:
        """Shapes of the factors of a weight of `shape` at `rank`, without computing them.

        One for each of `Factors.stored`, in that order.
        """
