"""From the name of a criterion to an order in which the channels of each group go."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skcompress.fitting.calibrated import Calibration
from skcompress.network.weights import Site
from skcompress.statistics.moments import Statistics

from .budget import Ranking
from .differentiated import relevance_scores, taylor_scores
from .errors import NonFiniteScoreError
from .groups import ChannelGroup
from .magnitude import channel_scores, importance
from .merging import Reading, elimination
from .removing import columns, matrix
from .tracing import Trace

# By weights alone; by the data.
PLAIN = ("l1", "l2", "batch_norm", "random")
DATA = ("taylor", "lrp", "merge")

# Of the second moments that channels are predicted by, as for reconstructions.
RIDGE = 1e-2

Found = tuple[dict[str, Ranking], dict[str, str]]


def rankings(
    criterion: Any,
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    trace: Trace,
    calibration: Calibration,
    sites: Mapping[str, Site],
    verbose: bool | int,
) -> Found:
    """Rank the units of each group, and say of which groups that cannot be done, and why.

    criterion : a name, or an importance of torch-pruning
    sites : weights of the layers that mix channels, by name
    """
    if criterion == "merge":
        return _merged(model, groups, calibration, sites, verbose)
    found: dict[str, Tensor]
    if criterion in ("taylor", "lrp"):
        if criterion == "taylor":
            found = taylor_scores(model, groups, calibration.batches, calibration.seed)
        else:
            found = relevance_scores(model, groups, calibration.batches)
        missing = "no batch of the data reaches it"
    elif criterion == "random":
        found, missing = {g.name: _random(g, calibration.seed) for g in groups}, ""
    else:
        scorer = importance(criterion) if isinstance(criterion, str) else criterion
        found = _of_weights(scorer, groups, trace)
        missing = f"criterion {criterion!r} finds nothing to go by"
    reasons = {g.name: missing for g in groups if g.name not in found}
    ranked = {}
    for group in groups:
        if group.name in found:
            scores = found[group.name].numpy()
            n_bad = int((~np.isfinite(scores)).sum())
            if n_bad:
                raise NonFiniteScoreError(str(criterion), group.name, n_bad, len(scores))
            order = np.argsort(scores, kind="stable")
            ranked[group.name] = Ranking(order.tolist(), scores[order])
    return ranked, reasons


def _random(group: ChannelGroup, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(group.name.encode(), seed & 0xFFFFFFFF))
    return torch.rand(len(group.units), generator=generator, dtype=torch.float64)


def _of_weights(
    scorer: Callable[[Any], Any], groups: Iterable[ChannelGroup], trace: Trace
) -> dict[str, Tensor]:
    found = {}
    for group in groups:
        channels = channel_scores(scorer, trace.tied[group.name])
        if channels is not None:
            units = [channels[list(unit)].mean() for unit in group.units]
            found[group.name] = torch.stack(units)
    return found


def _merged(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    calibration: Calibration,
    sites: Mapping[str, Site],
    verbose: bool | int,
) -> Found:
    """Rank each group as soon as all of its readers are known, so that few are held at a time."""
    waiting = {g.name: {m.layer for m in g.readers} for g in groups}
    by_name = {group.name: group for group in groups}
    wanted = dict.fromkeys(m.layer for g in groups for m in g.readers)
    held: dict[str, Statistics] = {}
    ranked: dict[str, Ranking] = {}
    for layer, statistics in calibration.stream(model, [sites[n] for n in wanted], verbose):
        held[layer] = statistics
        for name in [n for n, readers in waiting.items() if readers <= held.keys()]:
            del waiting[name]
            group = by_name[name]
            readings = _readings(model, group, calibration, sites, held)
            ranked[name] = Ranking(*elimination(readings, len(group.units)))
        needed = {reader for readers in waiting.values() for reader in readers}
        held = {reader: found for reader, found in held.items() if reader in needed}
    return ranked, dict.fromkeys(waiting, "no batch of the data reaches all that read it")


def _readings(
    model: nn.Module,
    group: ChannelGroup,
    calibration: Calibration,
    sites: Mapping[str, Site],
    held: Mapping[str, Statistics],
) -> list[Reading]:
    found = []
    for member in group.readers:
        moments, site = held[member.layer].moments, sites[member.layer]
        assert moments is not None
        # Where a bias makes up for the mean, only what varies has to be predicted.
        grams = moments.gram if calibration.offset_to(site) is None else moments.covariance
        weight = matrix(model.get_submodule(member.layer))
        scales = calibration.output_roots(site)
        size = weight[0, 0, 0].numel()
        within = torch.arange(size)
        places = []
        for unit in range(len(group.units)):
            index = torch.tensor(group.places(member, unit), dtype=torch.int64)
            places.append(columns(weight.cpu(), index.tolist()))
        for g, part in enumerate(weight):
            by_unit = [
                (place[of == g][:, None] * size + within).flatten().to(weight.device)
                for of, place in places
            ]
            found.append(Reading.of(part.flatten(1), grams[g], scales[g], by_unit, RIDGE))
    return found
