"""Which numbers of a weight matter least."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from sklearn.base import BaseEstimator
from torch import Tensor

from ..spaces import SearchSpace


class Criterion(BaseEstimator, ABC):
    """Says how much each single number of a weight matters; used by pruners.

    It sees tensors, never modules. `weight` is a finite float32 or float64 tensor without
    gradient, possibly non-contiguous, and is never changed. A subclass with randomness takes a
    `random_state` parameter; one without is asked about several weights at a time, in threads.
    """

    search_space: ClassVar[SearchSpace] = {}

    @abstractmethod
    def scores(self, weight: Tensor) -> Tensor:
        """Give non-negative importances of the shape of `weight`, (out, in, *kernel).

        The least go first; under a budget of the whole model, those of all weights compete.
        """


@dataclass(frozen=True)
class Evidence:
    """What calibration data says of one weight (out, in, *kernel), n = in * kernel.

    Only what a criterion asks for by `needs` is there; the rest is None.

    gram : float64 Tensor (n, n), E[x x^T] of the inputs that the weight is applied to, in the
        order of its memory; None for an embedding, which is looked up
    lookups : Tensor (out,), with "gram": the mean number of times that a position of the data
        looks up each row of an embedding; None for a weight that is multiplied with inputs
    gradient : Tensor of the weight's shape, E[dl/dw], where l is the log-likelihood of the
        class that the network finds most probable, or half the squared norm of other outputs
    fisher : Tensor of the weight's shape, E[(dl/dw)^2] for outputs drawn from the network's own
        distribution: the diagonal of the Fisher information
    relevance, positive_relevance : Tensors of the weight's shape, E[R], how much of the network's
        output for the most probable class comes through each number of the weight, by the rules
        "epsilon" and "positive" of `calibration.relevance`
    """

    gram: Tensor | None = None
    lookups: Tensor | None = None
    gradient: Tensor | None = None
    fisher: Tensor | None = None
    relevance: Tensor | None = None
    positive_relevance: Tensor | None = None

    def input_power(self, weight: Tensor) -> Tensor:
        """Give E[x^2] of what each number of `weight` is multiplied with, to be broadcast to it."""
        if self.gram is None:
            assert self.lookups is not None
            return self.lookups.to(weight).reshape(-1, *(1,) * (weight.dim() - 1))
        return self.gram.diagonal().clamp(min=0).to(weight).reshape(weight.shape[1:])


class DataCriterion(BaseEstimator, ABC):
    """Says how much each single number of a weight matters, from what data says of it.

    needs : fields of `Evidence`: "gram", "gradient", "fisher", "relevance", "positive_relevance"
    """

    @property
    @abstractmethod
    def needs(self) -> tuple[str, ...]:
        """Names of the fields that `scores` and `updated` read."""

    @abstractmethod
    def scores(self, weight: Tensor, evidence: Evidence) -> Tensor:
        """Give non-negative importances of the shape of `weight`, (out, in, *kernel)."""

    def updated(self, weight: Tensor, evidence: Evidence, kept: Tensor) -> Tensor:
        """Give the pruned weight: zero but where `kept` (of its shape, bool) is True.

        Rewritten by criteria that change what is kept, to make up for what goes.
        """
        return weight * kept
