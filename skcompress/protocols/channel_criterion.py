"""Which channels of a network matter least."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from sklearn.base import BaseEstimator
from torch import Tensor

from ..spaces import SearchSpace
from .metric import Metric


@dataclass(frozen=True)
class ChannelReading:
    """A weight that reads the channels of a group, and what it is given on the data.

    weight : Tensor (out, n)
    metric : of its inputs, and of how errors of its outputs count
    columns : for each unit, int64 Tensor of the columns of `weight` that read it; empty where none
        does
    """

    weight: Tensor
    metric: Metric
    columns: tuple[Tensor, ...]


@dataclass(frozen=True)
class Channels:
    """What is known of a group of channels, of which so many units may go, one at a time.

    A unit is one channel in all layers that give or read it, or several that only go together: one
    of each group of a grouped convolution, or those of an attention head.

    name : of the first layer that gives them
    n_units : how many units there are
    given : for each layer that gives them, Tensor (n_units, n) of the weights that make each unit;
        zeros where the layer gives another part of the group
    read : for each layer that reads them, Tensor (n_units, n) of the weights that read each unit
    scales : for each batch normalisation on them, Tensor (n_units, n) of what it multiplies by

    Only what a criterion asks for by `needs` is there of the rest:

    fisher : float64 Tensor (n_units,), E[(dl/dg)^2], with l the log-likelihood of the labels, or of
        labels that the network draws itself where the data has none, and g a factor of size 1 on
        the unit: what the likelihood changes by, squared, when the unit goes, to first order
    relevance : float64 Tensor (n_units,), E[R], how much of the network's output for the labelled
        or most probable class comes through the unit, by the rule alpha = 1, beta = 0
    readings : by "moments", each weight (of each group of a grouped convolution) that reads them
    """

    name: str
    n_units: int
    given: tuple[Tensor, ...] = ()
    read: tuple[Tensor, ...] = ()
    scales: tuple[Tensor, ...] = ()
    fisher: Tensor | None = None
    relevance: Tensor | None = None
    readings: tuple[ChannelReading, ...] = ()


class ChannelCriterion(BaseEstimator, ABC):
    """Says how much each unit of a group of channels matters; used by `ChannelPruner`.

    It sees tensors, never modules, and changes none. A subclass with randomness takes a
    `random_state` parameter.

    needs : what data has to say: "fisher", "relevance", "moments"
    wants_refit : whether scores are those of layers that are fitted to do without the channels,
        which ``refit="auto"`` then does
    """

    search_space: ClassVar[SearchSpace] = {}
    needs: ClassVar[tuple[str, ...]] = ()
    wants_refit: ClassVar[bool] = False

    @abstractmethod
    def scores(self, channels: Channels) -> Tensor | None:
        """Give importances (n_units,); None where there is nothing to go by.

        The least go first. Those of all groups compete where the budget is one of the whole model:
        let them be in one unit, such as shares of the mean of their group.
        """
