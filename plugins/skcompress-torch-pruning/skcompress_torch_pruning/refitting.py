"""Layers fitted to give what they gave, without the channels that go: in order of execution.

The compressed network is played by the original one with zeros where channels are no longer read,
which gives the same values in a network of the same shape: its moments are those of what each
layer will meet, and the goal is what the original layer gave from what it met.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from skcompress.building import DenseWeight, Site, fingerprint, least_squares, working_weight
from skcompress.protocols import Metric

from .groups import Removal
from .removing import columns


@dataclass(frozen=True)
class ChannelRefit:
    """What `reconstruct` replaces weights by: least squares on the inputs that stay.

    gone : what goes of each layer
    """

    gone: Removal

    def of_weight(self, site: Site) -> DenseWeight:
        """Give a weight that does not read what goes, and is the same otherwise."""
        weight = working_weight(site, None)
        stays = self._stays(site, weight)
        stays = stays[:, None].reshape(len(stays), 1, -1, *(1,) * (weight.dim() - 3))
        return DenseWeight(fingerprint(site.name, weight), weight * stays)

    def of_inputs(self, site: Site, weight: Tensor, metrics: Sequence[Metric]) -> DenseWeight:
        """Fit a weight (groups, out, in, *kernel) to its goals, zero where channels go."""
        result = torch.zeros_like(weight, memory_format=torch.contiguous_format)
        stays = self._stays(site, weight)
        size = weight[0, 0, 0].numel()
        for g, metric in enumerate(metrics):
            inputs = stays[g].repeat_interleave(size)
            if bool(inputs.any()):
                cross = metric.cross[:, inputs]
                seen = replace(metric, inputs=metric.inputs.of(inputs), cross=cross)
                result[g][:, stays[g]] = least_squares(weight[g][:, stays[g]], seen)
        return DenseWeight(fingerprint(site.name, weight), result)

    def _stays(self, site: Site, weight: Tensor) -> Tensor:
        """Which inputs stay, (groups, in)."""
        stays = torch.ones(weight.shape[0], weight.shape[2], dtype=torch.bool, device=weight.device)
        gone = self.gone.get(site.users[0][0], ([], []))[1]
        stays[columns(weight, gone)] = False
        return stays
