"""What it costs to keep a weight in a certain way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator
from torch import nn

from ..spaces import SearchSpace
from .factors import Stage


class StandInCall(NamedTuple):
    """One call of a layer, with what would stand in for it, on the meta device.

    module : the layer itself, or its stand-in with the stages that were asked for
    args, kwargs : of the call, tensors without values
    times : how often one forward calls the layer like this
    stages : names of the submodules that apply the stages, in their order; of the layer
        itself, the empty name
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    times: int
    stages: tuple[str, ...]


@dataclass(frozen=True)
class CostedWeight:
    """One weight as a cost sees it.

    shape : (groups, out, in, *kernel)
    numbers : how many the weight stores as it is
    itemsize : bytes of one of its numbers
    calls : gives the calls of all layers that have this weight, in one forward of the first batch,
        where its stages stand in for it; None gives the layers as they are. None instead of a
        callable where no inputs are known.
    refusal : why its factors save nothing when they run; None where they do
    """

    name: str
    shape: tuple[int, ...]
    numbers: int
    itemsize: int
    calls: Callable[[Sequence[Stage] | None], Iterator[StandInCall]] | None = None
    refusal: str | None = None


class Options(Sequence[tuple[Stage, ...]]):
    """Ways to keep one weight, as shapes of what is stored of its factors.

    numbers : int array (n,), stored numbers of each
    """

    def __init__(self, numbers: np.ndarray, stages: Callable[[int], tuple[Stage, ...]]):
        self.numbers = numbers
        self._stages = stages

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        return self._stages(range(len(self))[index])


class Cost(BaseEstimator, ABC):
    """What a budget is counted in. It sees shapes and calls, never values.

    unit : what one is called, as reports and errors write it
    gain : what a weight is said to be where it costs less
    needs_inputs : whether the calls of layers have to be known, which takes an input
    """

    search_space: ClassVar[SearchSpace] = {}
    unit: ClassVar[str]
    gain: ClassVar[str] = "smaller"
    needs_inputs: ClassVar[bool] = False

    @abstractmethod
    def of_model(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
        """Cost of a whole network.

        args, kwargs : of one forward, where `needs_inputs`; else empty
        """

    @abstractmethod
    def of_weight(self, weight: CostedWeight) -> float:
        """Cost of a weight as it is."""

    @abstractmethod
    def of_stages(self, weight: CostedWeight, stages: Sequence[Stage]) -> float:
        """Cost of a weight that is kept as these stages, over all layers that have it."""

    def of_options(self, weight: CostedWeight, options: Options) -> Sequence[float]:
        """Cost of each of many ways. To be written where that is much cheaper together."""
        return [self.of_stages(weight, stages) for stages in options]

    def refusal(self, weight: CostedWeight) -> str | None:
        """Say why nothing can be saved at a weight; None if it can."""
        return None
