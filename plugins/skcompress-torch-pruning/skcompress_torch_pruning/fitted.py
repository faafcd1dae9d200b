"""What a fit of channels learnt, and how it is applied to a model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from skcompress.building import Fingerprint, Fitted, Replacement, Selection, let_save

from .plan import ChannelPlan
from .removing import remove_


@dataclass(frozen=True)
class SameWeight(Replacement):
    """A weight that stays as it is, in a layer that may lose channels."""

    fingerprint: Fingerprint

    def value(self, weight: Tensor) -> Tensor:
        return weight

    def anew(self, weight: Tensor) -> Tensor:
        return weight


@dataclass(frozen=True)
class FittedChannels(Fitted):
    """What a fit learnt of a model: other weights, if any, and which channels then go.

    replacements : of all weights that lose channels, so that they are known again
    """

    plan: ChannelPlan  # type: ignore[assignment]

    def compares(self, name: str) -> bool:
        """No errors of layers are measured: few give as many outputs as before."""
        return False

    def _check(self, model: nn.Module, selection: Selection) -> None:
        self.plan.check(model)

    def _narrow(self, result: nn.Module) -> None:
        remove_(result, self.plan.removal, self.plan.resizes)
        let_save(result)
