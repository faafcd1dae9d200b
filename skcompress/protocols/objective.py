"""What a model is worth, or costs, as a number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from sklearn.base import BaseEstimator
from torch import nn


@dataclass(frozen=True)
class Bench:
    """What a search measures models with; None for what it was not given.

    example : arguments and keyword arguments of one forward, of the first input there is
    score : `scoring` of the search, as a function of a model in eval mode
    validation : the pair (inputs, targets) that `fit` was given
    data : inputs that compressors are fitted with
    decisive : whether an objective or a constraint is about the number, which is otherwise only
        shown, and better had quickly
    """

    example: tuple[tuple[Any, ...], Mapping[str, Any]] | None = None
    score: Callable[[nn.Module], Any] | None = None
    validation: Any = None
    data: Any = None
    decisive: bool = True


class Objective(BaseEstimator, ABC):
    """A number that a search makes best, or keeps within bounds.

    direction : which way is better
    unit : that the number is shown in; scale : how many of them are in one of the number
    label : what heads columns and axes, if not name and unit
    needs : fields of `Bench` without which it cannot be measured
    counted : whether it is a whole number, known exactly, that is best seen as a share of the
        uncompressed model's
    timed : whether it depends on what else the machine does. Where it decides something, it is
        measured while no other trial of the process computes.
    """

    direction: ClassVar[Literal["maximize", "minimize"]] = "minimize"
    unit: ClassVar[str] = ""
    label: ClassVar[str] = ""
    scale: ClassVar[float] = 1.0
    needs: ClassVar[tuple[str, ...]] = ()
    counted: ClassVar[bool] = False
    timed: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """What an instance is called in constraints and studies; plugins have registered names."""
        return type(self).__name__.lower()

    def heading(self, name: str) -> str:
        """Give what heads columns and axes of a quantity of this name."""
        return self.label or (f"{name}, {self.unit}" if self.unit else name)

    @abstractmethod
    def measure(self, model: nn.Module, bench: Bench) -> float:
        """Give a finite number for a model, which is in eval mode and stays as it is."""
