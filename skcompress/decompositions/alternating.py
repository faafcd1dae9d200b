"""W = L + S, a matrix of low rank and one that is mostly zero, found by turns.

With S fixed, the best L of rank r is a truncated SVD of what S leaves over; with L fixed, S takes
the numbers where the rest is largest, each counted by what its input makes of it, and with the
values that make up best for all others. In the Frobenius norm both steps are optimal and no error
ever grows; in the metric of the inputs the choice of positions is not, so the best of all turns is
what is given.

References: Zhou & Tao 2011 (GoDec); Zhang & Papyan 2024, arXiv 2409.13652 (OATS: positions by the
inputs' second moments); Makni et al. 2025, arXiv 2502.00899 (HASSLE-free: the whole metric).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ..linalg import leading_subspace, short_side, tail_energies
from ..masks import masked
from ..protocols import Metric
from ..ranking import keep_largest

# Of conjugate gradients: what more of them gain is gained by the next turn as well, and a product
# with the gram is what takes the time.
_STEPS = 3


class Goal(ABC):
    """A matrix (out, n) that is to be approximated, and what "close" means.

    target : Tensor of shape (out, n)
    """

    target: Tensor

    @abstractmethod
    def seen(self, rest: Tensor) -> Tensor:
        """Give rest (out, n) such that its distances are those of the metric."""

    @abstractmethod
    def projected(self, rest: Tensor, seen: Tensor, basis: Tensor) -> Tensor:
        """Project rest (out, n), where it is `seen`, on a basis (k, r) of its shorter side."""

    @abstractmethod
    def sparse(self, rest: Tensor, n_kept: int) -> Tensor:
        """Give `n_kept` numbers that make up for most of rest (out, n), and zeros elsewhere."""


class Closest(Goal):
    """A weight itself, in the Frobenius norm."""

    def __init__(self, weight: Tensor):
        self.target = weight.flatten(1)

    def seen(self, rest: Tensor) -> Tensor:
        return rest

    def projected(self, rest: Tensor, seen: Tensor, basis: Tensor) -> Tensor:
        if short_side(rest) is rest:
            return basis @ (basis.mT @ rest)
        return (rest @ basis) @ basis.mT

    def sparse(self, rest: Tensor, n_kept: int) -> Tensor:
        return masked(rest, keep_largest(rest.abs(), n_kept))


class Outputs(Goal):
    """What a weight is to give on its inputs; in `dtype`, of turns that need not be exact.

    target : the regression
    """

    def __init__(self, metric: Metric, target: Tensor, dtype: torch.dtype):
        self._metric, self._dtype, self.target = metric, dtype, target.to(dtype)
        # Of a number of the weight: what one of its unit makes of the outputs. Where outputs are
        # weighed with each other, only their own part decides which numbers are taken.
        ones = torch.ones_like(target[:, :1])
        if metric.output is None or metric.output.dim() == 1:
            by_row = metric.seen(ones).abs()
        else:
            by_row = metric.output.norm(dim=0)[:, None]
        self._sizes = (by_row * metric.inputs.diagonal.clamp(min=0).sqrt()).to(dtype)
        # A product with a matrix in lower precision is what takes the time.
        self._gram = metric.gram.to(dtype)

    def seen(self, rest: Tensor) -> Tensor:
        exact = rest.to(torch.float64)
        return self._metric.inputs.whiten(self._metric.seen(exact)).to(self._dtype)

    def projected(self, rest: Tensor, seen: Tensor, basis: Tensor) -> Tensor:
        exact, basis = rest.to(torch.float64), basis.to(torch.float64)
        if short_side(seen) is seen:
            found = basis @ (basis.mT @ self._metric.seen(exact))
        else:
            found = (seen.to(torch.float64) @ basis) @ self._metric.inputs.unwhiten(basis.mT)
        return self._metric.unseen(found).to(self._dtype)

    def sparse(self, rest: Tensor, n_kept: int) -> Tensor:
        kept = keep_largest(rest.abs() * self._sizes, n_kept)
        return refitted_values(self._gram, rest, kept)


def refitted_values(gram: Tensor, rest: Tensor, kept: Tensor) -> Tensor:
    """Give S, zero outside `kept` (out, n), with a small tr((rest - S) gram (rest - S)^T).

    No worse than the numbers of `rest` themselves: a few steps of conjugate gradients from these,
    in all rows at once. Exact least squares gains little more, and takes a system of equations for
    every row.
    """
    size = float(rest.abs().amax()) or 1.0
    rest = rest / size
    scale = 1 / gram.diagonal()
    tiny = torch.finfo(gram.dtype).tiny
    values = masked(rest, kept)
    slope = masked((rest - values) @ gram, kept)
    direction = slope * scale
    power = (slope * direction).sum(1, keepdim=True)
    for _ in range(_STEPS):
        change = masked(direction @ gram, kept)
        length = power / (direction * change).sum(1, keepdim=True).clamp(min=tiny)
        values, slope = values + length * direction, slope - length * change
        scaled, before = slope * scale, power
        power = (slope * scaled).sum(1, keepdim=True)
        direction = scaled + power / before.clamp(min=tiny) * direction
    return values * size


class Split:
    """A sparse term S (out, n), and what of the rest each rank would lose."""

    def __init__(self, goal: Goal, sparse: Tensor):
        self.sparse = sparse
        self._goal, self._rest = goal, goal.target - sparse
        self._seen = goal.seen(self._rest)
        values, self._vectors = leading_subspace(self._seen)
        self._tails = tail_energies(values).tolist()

    def lost(self, rank: int) -> float:
        """Squared norm of what is lost with the best factors of this rank."""
        return float(self._tails[rank - 1])

    def turn(self, rank: int, n_kept: int) -> Split:
        """Choose S anew, for the best factors of this rank that there are beside the old one."""
        low = self._goal.projected(self._rest, self._seen, self._vectors[:, :rank])
        return Split(self._goal, self._goal.sparse(self._goal.target - low, n_kept))


def take_turns(goal: Goal, ranks: Iterable[int], n_kept: int, n_iter: int) -> Iterator[Tensor]:
    """Yield S (out, n) with `n_kept` numbers for each rank, such that target - S is close to it.

    n_iter : how many times S is chosen; the best is given, or zeros where none is any better

    In trained networks it is best to begin with the factors: what stands out are the numbers that
    they miss. Outliers so large that factors would be spent on them are better taken away first;
    of both beginnings the better one is gone on with.

    For each rank, O(n_iter out n (out + n)) in the metric of inputs, and O(n_iter out n
    min(out, n)) in the Frobenius norm.
    """
    nothing = Split(goal, torch.zeros_like(goal.target))
    largest = Split(goal, goal.sparse(goal.target, n_kept))
    for rank in ranks:
        best = last = nothing
        for turn in range(n_iter):
            last = last.turn(rank, n_kept)
            if turn == 0:
                last = min(last, largest, key=lambda split: split.lost(rank))
            best = min(best, last, key=lambda split: split.lost(rank))
        yield best.sparse
