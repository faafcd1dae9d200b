"""Parts of a layer that are given again what they gave a step before."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .inputs import Rows


@dataclass(frozen=True)
class Preactivation:
    """What several weights of a layer give together, z = sum of W x over them, and biases.

    n_rows : numbers of z
    rows : by the name of the slot, the numbers of z that the outputs of the weight are added to,
        int64 (out,)
    biases : by the name of the slot, the parameter of the layer that is added to the same ones;
        empty where there is none
    """

    n_rows: int
    rows: Mapping[str, Tensor]
    biases: Mapping[str, str]


@dataclass(frozen=True)
class Unrolled:
    """One call of a recurrence.

    inputs : of each of its weights at every step, by the name of the slot; at the same positions
    states : what it gave at every step
    following : what the recurrence after it is given
    """

    inputs: Mapping[str, Rows]
    states: Rows
    following: Any


class Recurrence(ABC):
    """One layer of an LSTM, say, in all its directions: its inputs depend on its own weights.

    preactivations : all its weights, each in one of them
    """

    preactivations: tuple[Preactivation, ...]

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the slots of all its weights."""
        return tuple(slot for z in self.preactivations for slot in z.rows)

    @abstractmethod
    def run(self, module: nn.Module, given: Any) -> Unrolled:
        """Let it run freely, on its own states.

        module : the layer, in eval mode, or a copy of it with other values
        given : the arguments of a call of the module, by name; for others than its first
            recurrence what followed from the one before
        """
