"""From a criterion to an order in which the channels of each group go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch_pruning.dependency import Group as TiedGroup

from skcompress import registry
from skcompress.building import Calibration, Site, Statistics, WeightOnData, working_weight
from skcompress.protocols import ChannelCriterion, ChannelReading, Channels

from .budget import Ranking
from .errors import NonFiniteScoreError
from .gates import fisher, relevance
from .groups import ChannelGroup
from .removing import columns, matrix, mixes, transforms
from .tracing import Trace

Importance = Callable[[Any], Any]
NOT_REACHED = "no batch of the data reaches all that read it"


def resolved(given: Any, seed: int) -> ChannelCriterion | Importance:
    """Give a criterion of its own by its name or instance; importances of torch-pruning as is."""
    if callable(given) and not isinstance(given, type | ChannelCriterion):
        return given  # type: ignore[no-any-return]
    criterion = clone(registry.make("channel_criteria", given))
    if criterion.get_params().get("random_state", 0) is None:
        criterion.set_params(random_state=seed)
    return criterion  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Scoring:
    """Ranks units by a criterion.

    sites : weights of the layers that mix channels, by the name of the layer
    """

    criterion: ChannelCriterion | Importance
    trace: Trace
    calibration: Calibration
    sites: Mapping[str, Site]
    verbose: bool | int = False

    def rankings(self, groups: Sequence[ChannelGroup]) -> tuple[dict[str, Ranking], dict[str, str]]:
        """Rank the units of each group, and say of which groups that cannot be done, and why."""
        found, reasons = {}, {}
        needs = getattr(self.criterion, "needs", ())
        missing = NOT_REACHED if needs else f"criterion {self.criterion!r} finds nothing to go by"
        for group, scores in self._scores(groups, needs):
            if scores is not None:
                found[group.name] = self._ranking(group, scores)
        for group in groups:
            if group.name not in found:
                reasons[group.name] = missing
        return found, reasons

    def _ranking(self, group: ChannelGroup, given: Tensor) -> Ranking:
        scores = given.detach().double().cpu().numpy()
        n_bad = int((~np.isfinite(scores)).sum())
        if n_bad:
            raise NonFiniteScoreError(repr(self.criterion), group.name, n_bad, len(scores))
        order = np.argsort(scores, kind="stable")
        return Ranking(order.tolist(), scores[order])

    def _scores(
        self, groups: Sequence[ChannelGroup], needs: Sequence[str]
    ) -> Iterator[tuple[ChannelGroup, Tensor | None]]:
        criterion, given = self.criterion, self.calibration
        if not isinstance(criterion, ChannelCriterion):
            for group in groups:
                yield group, _of_importance(criterion, group, self.trace.tied[group.name])
            return
        by_gates: dict[str, dict[str, Tensor]] = {}
        if "fisher" in needs:
            by_gates["fisher"] = fisher(given.model, groups, given.batches, given.seed)
        if "relevance" in needs:
            by_gates["relevance"] = relevance(
                given.model, groups, given.batches, given.structure.norms
            )
        open_ = [g for g in groups if all(g.name in found for found in by_gates.values())]
        for group, readings in self._readings(open_, "moments" in needs):
            channels = replace(
                described(given.model, group),
                readings=readings,
                **{what: found[group.name] for what, found in by_gates.items()},
            )
            yield group, criterion.scores(channels)

    def _readings(
        self, groups: Sequence[ChannelGroup], wanted: bool
    ) -> Iterator[tuple[ChannelGroup, tuple[ChannelReading, ...]]]:
        """Yield each group as soon as all of its readers are known, so that few are held."""
        if not wanted:
            yield from ((group, ()) for group in groups)
            return
        names = dict.fromkeys(m.layer for group in groups for m in group.readers)
        waiting = {g.name: {m.layer for m in g.readers} for g in groups}
        by_name = {group.name: group for group in groups}
        held: dict[str, Statistics] = {}
        sites = [self.sites[name] for name in names]
        for site, statistics in self.calibration.statistics(sites, self.verbose):
            held[site.users[0][0]] = statistics
            for name in [n for n, readers in waiting.items() if readers <= held.keys()]:
                del waiting[name]
                yield by_name[name], self._of_group(by_name[name], held)
            needed = {reader for readers in waiting.values() for reader in readers}
            held = {reader: found for reader, found in held.items() if reader in needed}

    def _of_group(
        self, group: ChannelGroup, held: Mapping[str, Statistics]
    ) -> tuple[ChannelReading, ...]:
        found = []
        given = self.calibration
        for member in group.readers:
            site = self.sites[member.layer]
            weight = working_weight(site, None)
            centred = given.structure.takes_mean(site) is not None
            met = WeightOnData(weight, held[member.layer], given.roots(site), centred)
            size = weight[0, 0, 0].numel()
            within = torch.arange(size, device=weight.device)
            places = [columns(weight, group.places(member, u)) for u in range(len(group.units))]
            for g, (part, metric) in enumerate(zip(weight, met.metrics, strict=True)):
                by_unit = [(at[of == g][:, None] * size + within).flatten() for of, at in places]
                found.append(ChannelReading(part.flatten(1), metric, tuple(by_unit)))
        return tuple(found)


def described(model: nn.Module, group: ChannelGroup) -> Channels:
    """Give the weights that make and read each unit of a group, and scales of normalisations."""
    given, read, scales = [], [], []
    for member in group.members:
        layer = model.get_submodule(member.layer)
        places = [group.places(member, unit) for unit in range(len(group.units))]
        if transforms(layer) and member.outputs:
            given.append(_by_unit(matrix(layer).flatten(0, 1).flatten(1), places))
        elif mixes(layer):
            read.append(_by_unit(matrix(layer).transpose(1, 2).flatten(0, 1).flatten(1), places))
        elif isinstance(layer, _BatchNorm) and layer.weight is not None:
            scales.append(_by_unit(layer.weight.detach()[:, None], places))
    return Channels(group.name, len(places), tuple(given), tuple(read), tuple(scales))


def _by_unit(values: Tensor, places: Sequence[Sequence[int]]) -> Tensor:
    """From values (channels, n) of a layer to (units, m); zeros where it has none of a unit."""
    most = max(map(len, places))
    index = torch.tensor([[*p, *[-1] * (most - len(p))] for p in places], dtype=torch.int64)
    index = index.to(values.device)
    return (values[index] * (index >= 0)[..., None]).flatten(1)


def _of_importance(importance: Importance, group: ChannelGroup, tied: TiedGroup) -> Tensor | None:
    """Ask an importance of torch-pruning, which scores channels; None for nothing to go by."""
    found = importance(tied)
    if not isinstance(found, Tensor) or found.numel() == 0:
        return None
    channels = found.detach().double().cpu().flatten()
    return torch.stack([channels[list(unit)].mean() for unit in group.units])
