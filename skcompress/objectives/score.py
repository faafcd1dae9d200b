"""How good a model is."""

from __future__ import annotations

from torch import nn

from ..protocols import Bench, Objective


class Score(Objective):
    """What `scoring` of the search gives; more is better."""

    direction = "maximize"
    needs = ("score",)

    def measure(self, model: nn.Module, bench: Bench) -> float:
        assert bench.score is not None
        return bench.score(model)  # type: ignore[no-any-return]
