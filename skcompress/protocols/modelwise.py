"""How penalties on tensors get to the weights of a model: handed down, not looked up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..errors import NotInstalledError

if TYPE_CHECKING:
    from .regularizer import Regularizer


class Modelwise(ABC):
    """Applies regularizers to whole models; knows which of a model's tensors are weights.

    One is registered in the entry-point group `skcompress.modelwise`. A regularizer sees tensors
    and asks it for the rest, so that a package that writes one needs nothing but the protocols.
    """

    @abstractmethod
    def penalty(self, regularizer: Regularizer, model: nn.Module) -> Tensor:
        """Give strength times the sum of penalties over the weights, a scalar with a graph."""

    @abstractmethod
    def add_gradients_(self, regularizer: Regularizer, model: nn.Module, scale: float) -> None:
        """Add `scale` times strength times the gradient to `.grad` of the parameters."""

    @abstractmethod
    def prox_(self, regularizer: Regularizer, model: nn.Module, step: float) -> None:
        """Replace the weights by their proximal points, `step` times strength away."""


@lru_cache(maxsize=1)
def modelwise() -> Modelwise:
    """Give the one that is registered."""
    points = list(entry_points(group="skcompress.modelwise"))
    if not points:
        raise NotInstalledError
    found: Modelwise = points[0].load()()
    return found
