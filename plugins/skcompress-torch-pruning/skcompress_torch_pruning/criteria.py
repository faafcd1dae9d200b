"""What channels are worth, by their weights, by normalisations, by data, or by chance."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from sklearn.utils import check_random_state
from torch import Tensor

from skcompress.protocols import ChannelCriterion, Channels

from .merging import Eliminated, elimination


class _Norm(ChannelCriterion):
    """Sum of powers of all weights that give or read a unit, relative to the mean of its group."""

    _power: int

    def scores(self, channels: Channels) -> Tensor | None:
        weights = (*channels.given, *channels.read)
        if not weights:
            return None
        sizes = [weight.double().abs().pow(self._power).sum(1) for weight in weights]
        return relative(torch.stack(sizes).sum(0))


class L1(_Norm):
    """Absolute weights of all layers that give or read a unit, relative to the mean of its group.

    References: Li et al. 2017, arXiv 1608.08710; Fang et al. 2023, arXiv 2301.12900 (all layers).
    """

    _power = 1


class L2(_Norm):
    """Squared weights of all layers that give or read a unit, relative to the mean of its group.

    Reference: Fang et al. 2023, arXiv 2301.12900.
    """

    _power = 2


class BatchNorm(ChannelCriterion):
    """Absolute scales of batch normalisations, relative to the mean of the group.

    Reference: Liu et al. 2017, arXiv 1708.06519 (network slimming).
    """

    def scores(self, channels: Channels) -> Tensor | None:
        if not channels.scales:
            return None
        return relative(torch.stack([s.double().abs().sum(1) for s in channels.scales]).sum(0))


class Random(ChannelCriterion):
    """Random numbers, as a baseline.

    random_state : int, RandomState or None; with an int the same every time
    """

    def __init__(self, random_state: Any = None):
        self.random_state = random_state

    def scores(self, channels: Channels) -> Tensor:
        seed = 0 if self.random_state is None else self.random_state
        if not isinstance(seed, int):
            seed = int(check_random_state(seed).randint(2**31 - 1))
        name = channels.name.encode()
        generator = torch.Generator().manual_seed(zlib.crc32(name, seed & 0xFFFFFFFF))
        return torch.rand(channels.n_units, generator=generator, dtype=torch.float64)


class Taylor(ChannelCriterion):
    """Squared change of the log-likelihood without the unit, to first order; a mean over samples.

    Where the data has no labels they are drawn from what the network itself says, which makes it
    the diagonal of the Fisher information.

    References: Molchanov et al. 2019, arXiv 1906.10771; Theis et al. 2018, arXiv 1801.05787.
    """

    needs = ("fisher",)

    def scores(self, channels: Channels) -> Tensor | None:
        return channels.fisher


class LRP(ChannelCriterion):
    """Size of the relevance for the labelled, or the most probable, class that flows through.

    Reference: Yeom et al. 2021, "Pruning by explaining", arXiv 1912.08881.
    """

    needs = ("relevance",)

    def scores(self, channels: Channels) -> Tensor | None:
        # What speaks against a class is as much a part of what the network says of it.
        return None if channels.relevance is None else channels.relevance.abs()


class Merge(ChannelCriterion):
    """What the layers that read a unit lose when it is predicted from those that stay.

    See `merging` for the mathematics.

    ridge : share of the mean of the diagonal that is added to second moments of inputs
    """

    needs = ("moments",)
    wants_refit = True

    def __init__(self, ridge: float = 1e-2):
        self.ridge = ridge

    def scores(self, channels: Channels) -> Tensor | None:
        if not channels.readings:
            return None
        readings = [
            Eliminated.of(r.weight, r.metric.with_ridge(r.weight, self.ridge), r.columns)
            for r in channels.readings
        ]
        order, costs = elimination(readings, channels.n_units)
        found = torch.zeros(channels.n_units, dtype=torch.float64)
        found[order] = torch.from_numpy(costs)
        return found


def relative(sizes: Tensor) -> Tensor:
    """Divide by the mean, where there is any."""
    return sizes / (float(sizes.mean()) or 1.0)
