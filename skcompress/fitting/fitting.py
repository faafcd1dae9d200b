"""One fit under way: ranks chosen, factors fitted, and what comes of it compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from torch import nn

from ..metrics import count_parameters
from ..network.weights import Selection
from ..protocols import Allocation, Choice, Decomposition, Layer
from .calibrated import Calibration
from .comparing import NormStatistics, Result
from .factorizing import FactorizedSite
from .planning import choose_options, make_plan
from .replacing import replaced
from .sequential import Reconstruction
from .workload import Workload


@dataclass(frozen=True)
class Outcome(Result):
    """A plan and the factors for it.

    choices : per site; None where it stays dense
    fits : of sites that were fitted anew for this plan, by name
    flops : of one forward before and after, where the budget is one of FLOPs
    importance : how much the error of each weight counted; 1 where nothing is said
    """

    choices: list[Choice | None]
    fits: dict[str, FactorizedSite] = field(default_factory=dict)
    flops: tuple[int, int] | None = None
    importance: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Fitting:
    """What does not change between the outcomes that are compared.

    sites : what the expensive step found out about each weight, in the order of `selection`
    workload : FLOPs of all options; None where the budget is one of parameters
    """

    model: nn.Module
    selection: Selection
    sites: Sequence[FactorizedSite]
    decompositions: Mapping[str, Decomposition]
    calibration: Calibration | None
    workload: Workload | None
    device: Any

    @property
    def found(self) -> dict[str, FactorizedSite]:
        """The sites by name."""
        return {site.name: site for site in self.sites}

    def outcome(
        self,
        rank: Any,
        allocation: Allocation,
        importance: Mapping[str, float] = MappingProxyType({}),
        *,
        sequential: bool = False,
        dense: bool = False,
        verbose: bool | int = False,
    ) -> Outcome:
        """Choose ranks, and fit the factors one after another where asked to.

        importance : see `Outcome`
        dense : whether what stays dense is fitted too
        """
        where, flops = self.selection.sites, None
        if self.workload is None:
            layers = weighted([site.layer for site in self.sites], importance)
            n_parameters = count_parameters(self.model)
            choices, reasons = choose_options(layers, where, rank, allocation, n_parameters)
        else:
            work = replace(self.workload, layers=weighted(self.workload.layers, importance))
            choices, reasons, n_flops = work.choose(where, rank, allocation)
            flops = work.total, n_flops
        plan = make_plan(self.selection, self.sites, choices, reasons, self.decompositions)
        fits: dict[str, FactorizedSite] = {}
        if sequential:
            assert self.calibration is not None
            reconstruction = Reconstruction(
                self.found, plan, self.decompositions, self.calibration, self.device, dense=dense
            )
            fits = reconstruction.run(self.model, self.selection.sites, verbose)
        return Outcome(plan, choices, fits, flops=flops, importance=importance)

    def compressed(self, outcome: Outcome) -> nn.Module:
        """Build the compressed model."""
        known = {**self.found, **outcome.fits}
        result = replaced(
            self.model,
            self.selection,
            outcome.plan,
            known.get,
            self.decompositions,
            self.device,
            calibrated=True,
        )
        set_norms(result, outcome.norms)
        return result


def weighted(layers: Sequence[Layer], importance: Mapping[str, float]) -> list[Layer]:
    """Count the relative error of each layer so many times; once where nothing is said."""
    return [replace(layer, importance=importance.get(layer.name, 1.0)) for layer in layers]


def set_norms(model: nn.Module, norms: NormStatistics) -> None:
    """Write the statistics of batch normalisations, in place."""
    for name, statistics in norms.items():
        norm = model.get_submodule(name)
        for buffer, value in zip((norm.running_mean, norm.running_var), statistics, strict=True):
            buffer.copy_(value)  # type: ignore[operator, union-attr]


def trimmed(sites: Sequence[FactorizedSite], outcome: Outcome) -> list[FactorizedSite]:
    """Keep what the chosen ranks need, nothing else."""
    return [s.trimmed(c) for s, c in zip(sites, outcome.choices, strict=True)]
