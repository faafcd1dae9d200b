"""Stored numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..metrics import count_parameters
from ..protocols import Cost, CostedWeight, Options, Stage


class Parameters(Cost):
    """Numbers that are stored, each counted once however many layers share it."""

    unit = "parameters"

    def of_model(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        return count_parameters(model)

    def of_weight(self, weight: CostedWeight) -> int:
        return weight.numbers

    def of_stages(self, weight: CostedWeight, stages: Sequence[Stage]) -> int:
        return sum(stage.size for stage in stages)

    def of_options(self, weight: CostedWeight, options: Options) -> Sequence[int]:
        return options.numbers  # type: ignore[return-value]
