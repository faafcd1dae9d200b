"""More of the values of weights whose energy is spread over many of them: the PQ index."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import AllocationValueError
from ..protocols import Prunable, SparsityAllocation
from .shares import in_proportion


def pq_index(values: Tensor, p: float, q: float) -> float:
    """1 - d^(1/q - 1/p) |w|_p / |w|_q of d numbers, 0 < p < q: 0 where all are equally large.

    0 for a weight of zeros.
    """
    sizes = values.reshape(-1).abs()
    largest = float(sizes.max())
    if not largest > 0:
        return 0.0
    sizes = sizes / largest
    means = [float(sizes.pow(power).mean(dtype=torch.float64)) for power in (p, q)]
    return max(0.0, 1 - means[0] ** (1 / p) / means[1] ** (1 / q))


class SAP(SparsityAllocation):
    """In proportion to how many values a weight needs at least, by its PQ index I.

    d (1 - I)^(pq/(q - p)) of d values hold most of a weight's norm; the budget scales these numbers
    (the paper's factor (1 + eta)^(q/(p - q)) with an eta that meets it). Looks at weights alone.

    p, q : float, 0 < p < q

    References: Diao et al. 2023, arXiv 2302.05601 (sparsity-informed adaptive pruning).
    """

    def __init__(self, p: float = 0.5, q: float = 1.0):
        self.p = p
        self.q = q

    def divide(self, weights: Sequence[Prunable], n_kept: int) -> list[int]:
        if not 0 < self.p < self.q:
            raise AllocationValueError("SAP", "p and q", "0 < p < q", (self.p, self.q))
        power = self.p * self.q / (self.q - self.p)
        needed = [w.size * (1 - pq_index(w.weight(), self.p, self.q)) ** power for w in weights]
        return in_proportion(weights, needed, n_kept)
