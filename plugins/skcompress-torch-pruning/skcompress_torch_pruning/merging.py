"""Channels ranked by what cannot be made of the others: least squares on the inputs of each reader.

A layer reads inputs x (n,) with second moment H = E[x x^T] and gives y = W x. When the columns c of
a channel go and the others may change to make up for it, the least mean squared error of y is

    tr(W_c ([H^-1]_cc)^-1 W_c^T),    by    W <- W - W_c ([H^-1]_cc)^-1 [H^-1]_c,

so the channel is not dropped: its effect is folded into those that stay. Channels go one after
another, each time the one that costs least of all outputs that the readers give, relative to
their energy; H^-1 and W follow by the same formula, so that each cost is what is lost in addition.

References: LeCun, Denker & Solla 1990 and Hassibi & Stork 1993 (optimal brain surgeon); Frantar &
Alistarh 2022, arXiv 2208.11580, and Kurtic, Frantar & Alistarh 2023, arXiv 2302.04089 (in closed
form, for whole structures); Wang et al. 2024, ICLR 2025 Model Folding, arXiv 2502.10216 (merging).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from skcompress.protocols import Metric

# In so many rounds at most all units of a group go; several at a time where there are more.
_ROUNDS = 64


@dataclass
class Eliminated:
    """One weight (out, n) of a reader, with what it is applied to; changed as channels go.

    inverse : float64 (n, n), H^-1
    weight : float64 (out, n), rows scaled as errors of the outputs count, so that the energy of
        the outputs is 1
    columns : for each unit of the group, the inputs that it is; none where it is not read here
    """

    inverse: Tensor
    weight: Tensor
    columns: Sequence[Tensor]

    @classmethod
    def of(cls, weight: Tensor, metric: Metric, columns: Sequence[Tensor]) -> Eliminated:
        """Begin with a weight (out, n) in the metric of its inputs."""
        seen = metric.seen(weight.to(metric.cross))
        one = torch.eye(len(metric.inputs), dtype=seen.dtype, device=seen.device)
        return cls(metric.inputs.solve(one), seen / (metric.energy or 1.0) ** 0.5, columns)

    def costs(self, units: Sequence[int]) -> np.ndarray:
        """Share of the outputs' energy that each of these units would cost now."""
        result = np.zeros(len(units))
        by_size: dict[int, list[int]] = {}
        for place, unit in enumerate(units):
            by_size.setdefault(len(self.columns[unit]), []).append(place)
        for size, places in by_size.items():
            if size:
                index = torch.stack([self.columns[units[place]] for place in places])
                blocks = self.inverse[index[:, :, None], index[:, None, :]]
                read = self.weight[:, index].permute(1, 2, 0)  # units, columns, out
                lost = (read * torch.linalg.solve(blocks, read)).sum((1, 2))
                result[places] = lost.clamp(min=0).cpu().numpy()
        return result

    def remove(self, units: Sequence[int]) -> None:
        """Take units out, and fold them into the others."""
        index = torch.cat([self.columns[unit] for unit in units])
        if len(index):
            rows = self.inverse[index]
            solved = torch.linalg.solve(rows[:, index], rows)  # ([H^-1]_cc)^-1 [H^-1]_c
            self.weight -= self.weight[:, index] @ solved
            self.inverse -= rows.mT @ solved
            # Of what is gone nothing is left but rounding.
            self.inverse[index] = 0
            self.inverse[:, index] = 0
            self.weight[:, index] = 0


def elimination(readings: Sequence[Eliminated], n_units: int) -> tuple[list[int], np.ndarray]:
    """Order in which the units of a group go, and what each costs in addition, always growing.

    readings : all that is read of the group; used up
    """
    left = list(range(n_units))
    order: list[int] = []
    scores: list[float] = []
    at_once = -(-n_units // _ROUNDS)
    while left:
        costs = np.sum([reading.costs(left) for reading in readings], axis=0)
        first = np.argsort(costs, kind="stable")[:at_once]
        going = [left[place] for place in first]
        order += going
        scores += costs[first].tolist()
        if len(going) < len(left):
            for reading in readings:
                reading.remove(going)
        left = [unit for unit in left if unit not in going]
    for place in range(1, n_units):  # so that sorting gives this order again
        scores[place] = max(scores[place], float(np.nextafter(scores[place - 1], np.inf)))
    return order, np.array(scores)
