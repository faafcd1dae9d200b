"""Which values of all weights stay: from scores to `PrunedWeight`s."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...fitting.candidates import working_weight
from ...fitting.digests import Fingerprint
from ...masks import masked
from ...network.weights import Site
from ...protocols import Prunable, SparsityAllocation
from ...ranking import keep_largest
from ...statistics.gradients import kfac_energy
from ...statistics.moments import Moments
from ...threads import results_side_by_side
from .budget import least_kept, numbers_that_stay
from .patterns import keep_pattern
from .pruned import PrunedWeight

Distortion = Callable[[Sequence[int]], Sequence[float]]


def chosen(
    owner: str,
    sites: Sequence[Site],
    scores: dict[str, Tensor],
    sparsity: float,
    min_kept: Any,
    allocation: SparsityAllocation,
    distortions: Mapping[str, Distortion],
    seen: Mapping[str, Fingerprint],
    device: Any,
) -> list[PrunedWeight]:
    """Keep the values with the largest scores, as many of each weight as the allocation says.

    scores : by the name of the site; used up, one after another
    seen : fingerprints of the weights
    """
    least = least_kept(min_kept, sparsity, [scores[site.name].numel() for site in sites])
    weights = [
        Prunable(
            site.name,
            tuple(scores[site.name].shape),
            at_least,
            scores=_Constant(scores[site.name]),
            weight=_Weight(site, device),
            distortion=distortions.get(site.name),
        )
        for site, at_least in zip(sites, least, strict=True)
    ]
    counts = numbers_that_stay(owner, weights, sparsity, min_kept, allocation)
    del weights

    def choose(pair: tuple[Site, int]) -> PrunedWeight:
        site, count = pair
        kept = keep_largest(scores.pop(site.name), count)
        return PrunedWeight.of(site.name, seen[site.name], kept)

    pairs = list(zip(sites, counts, strict=True))
    return results_side_by_side(choose, pairs, size=lambda pair: pair[0].slot.size)


def chosen_by_pattern(
    sites: Sequence[Site],
    scores: dict[str, Tensor],
    pattern: tuple[int, int],
    seen: Mapping[str, Fingerprint],
) -> list[PrunedWeight]:
    """Keep the N values of every M neighbours that have the largest scores."""
    return [
        PrunedWeight.of(site.name, seen[site.name], keep_pattern(scores.pop(site.name), pattern))
        for site in sites
    ]


def distortion(scores: Tensor, weight: Tensor, moments: Moments, gradients: Tensor) -> Distortion:
    """Give what the outputs of the network lose, in nats to second order, by numbers of values.

    scores, weight : (groups, out, in, *kernel); gradients : as `calibration.output_moments` gives
    """

    def lost(counts: Sequence[int]) -> list[float]:
        inputs = [m.to(weight.device) for m in moments.of_inputs(centred=False)]
        seen = gradients.to(weight.device)
        return [
            kfac_energy(masked(weight, ~keep_largest(scores, count)), inputs, seen) / 2
            for count in counts
        ]

    return lost


class _Constant:
    """A callable that gives a tensor."""

    def __init__(self, value: Tensor):
        self._value = value

    def __call__(self) -> Tensor:
        return self._value


class _Weight:
    """A callable that gives the values of a site."""

    def __init__(self, site: Site, device: Any):
        self._site, self._device = site, device

    def __call__(self) -> Tensor:
        with torch.no_grad():
            return working_weight(self._site, self._device)
