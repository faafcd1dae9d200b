"""Weights fitted one layer after another: to the original's outputs, from the inputs met now."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..lockstep.anchored import Anchored
from ..lockstep.lockstep import Lockstep
from ..network.addends import addends
from ..network.batches import device_of
from ..network.observing import same_randomness
from ..network.weights import Site
from ..protocols import Metric
from .calibrated import Calibration, noise, on
from .factorizing import add_offset


@dataclass(frozen=True)
class Goal:
    """What a weight (groups, out, in, *kernel) is to give, from what it is given now.

    metrics : one for each group
    means : mean inputs (groups, n) and the mean outputs (groups, out) that are to come of them,
        where something makes up for the difference; the metrics are centred then
    offset_to : name of the module that does; see `FactorizedSite`
    """

    metrics: list[Metric]
    means: tuple[Tensor, Tensor] | None
    offset_to: str | None


@dataclass(frozen=True)
class StandIn:
    """What is put in the place of a layer.

    offset : what its mean outputs miss, to be added to `offset_to`; None for nothing
    """

    module: nn.Module
    offset: Tensor | None = None
    offset_to: str | None = None


class InOrder(ABC):
    """Goes through a network in the order of execution; subclasses fit and replace its layers.

    ridge : of the metrics of the goals, whose inputs have drifted: with less, layers of as many
        inputs as there are samples learn the drift by heart

    Layers whose outputs are added to others, as at the end of a residual block, make up for what
    has become of these (He, Zhang & Sun 2017, arXiv 1707.06168, on networks of several branches).
    Weights that several layers share, and look-ups, are replaced without being fitted.
    """

    ridge: ClassVar[float] = 1e-2

    def __init__(self, calibration: Calibration, device: Any):
        self._calibration, self._device = calibration, device

    @abstractmethod
    def fit_site(self, site: Site, goal: Goal) -> None:
        """Fit one weight, and remember what came of it."""

    @abstractmethod
    def stand_in(self, name: str, module: nn.Module, sites: Sequence[Site]) -> StandIn | None:
        """Give what is to stand for a layer of the original with these weights; None for itself."""

    def go(self, model: nn.Module, sites: Iterable[Site], verbose: bool | int) -> None:
        """Fit and replace the layers of these sites, one after another."""
        by_module: dict[str, list[Site]] = defaultdict(list)
        for site in sites:
            for module_name, _ in site.users:
                by_module[module_name].append(site)
        given = self._calibration
        with same_randomness(device_of(model)), torch.no_grad():
            alone = {
                site.users[0][0] for found in by_module.values() for site in found if site.alone
            }
            networks = Lockstep(
                model,
                by_module,
                given.batches,
                max_positions=given.max_positions,
                seed=given.seed,
                addends=addends(model, alone, given.norms, given.batches),
            )
            bar = tqdm(
                networks, desc="reconstruct", unit="layer", total=len(networks), disable=not verbose
            )
            for name in bar:
                own = {s.slot.name: s for s in by_module[name] if len(s.users) == 1}
                slots = {slot: site.slot for slot, site in own.items()}
                roots = {slot: given.output_roots(site) for slot, site in own.items()}
                for slot, moments in networks.anchored(name, slots, roots).items():
                    self.fit_site(own[slot], self._goal(own[slot], moments))
                made = self.stand_in(name, networks.pristine(name), by_module[name])
                if made is not None:
                    networks.replace(name, made.module)
                    if made.offset is not None and made.offset_to is not None:
                        add_offset(networks.successor(made.offset_to), made.offset)

    def _goal(self, site: Site, given: Anchored) -> Goal:
        device = site.slot.parameters[0].device if self._device is None else self._device
        offset_to = self._calibration.offset_to(site)
        moments = given.with_means() if offset_to is None else given
        metrics = []
        weights = site.slot.read().detach()
        for g, (weight, root) in enumerate(zip(weights, given.roots, strict=True)):
            energy = float(moments.energy[g].sum())
            inputs, cross = moments.squares[g].to(device), moments.cross[g].to(device)
            least = noise(given.squares[g], given.inputs[g])
            metric = Metric(inputs, cross, energy, on(device, root))
            metrics.append(metric.with_ridge(weight, self.ridge, least))
        means = given.inputs.to(device), given.outputs.to(device)
        return Goal(metrics, means if offset_to is not None else None, offset_to)
