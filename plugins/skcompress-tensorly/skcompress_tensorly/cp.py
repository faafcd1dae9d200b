"""CP decomposition: a convolution as a sum of products of one vector per axis."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils import check_random_state
from tensorly.decomposition import parafac
from torch import Tensor

from skcompress.linalg import balanced_factors, leading_subspace
from skcompress.protocols import (
    Curve,
    Factorization,
    Factors,
    Rank,
    Stage,
    WeightDecomposition,
)
from skcompress.spaces import IntRange, SearchSpace

from .backend import torch_backend
from .truncated_svd import TruncatedSVD, long_axes, matrix_stages

# Strength of the squared norms in the least-squares steps, for a weight of norm 1. Without
# it terms grow large and cancel (Phan et al. 2020), which half precision cannot hold.
_RIDGE = 1e-4

Terms = list[Tensor]  # one factor (size, r) per axis: out, in, kernel axes longer than 1


def rank_grid(shape: Sequence[int], n_ranks: int) -> np.ndarray:
    """Up to `n_ranks` ranks, spaced geometrically, from 1 to the largest worth a fit.

    That stores three quarters of the weight's numbers. Beyond, the fits are the slowest
    and save next to nothing.
    """
    sizes = term_sizes(shape)
    largest = max(1, 3 * prod(sizes) // (4 * sum(sizes)))
    return np.unique(np.geomspace(1, largest, n_ranks).round().astype(np.int64))


def term_sizes(shape: Sequence[int]) -> list[int]:
    """Sizes of the axes that a term has a vector for: out, in, kernel axes longer than 1."""
    return [*shape[:2], *(shape[2 + axis] for axis in long_axes(shape))]


def add_up(terms: Terms) -> Tensor:
    """Sum of the products of the columns of `terms`: (out, in, *kernel)."""
    first, second, *others = terms
    for factor in others:
        first = (first[..., None, :] * factor).flatten(0, -2)
    product = (first @ second.mT).reshape(-1, *(len(f) for f in others), len(second))
    return product.movedim(-1, 1)


def leading_terms(tensor: Tensor, n: int) -> Terms:
    """The n largest of the singular triplets of all kernel positions, as terms.

    tensor : Tensor (out, in, *kernel)
    They are orthogonal to each other, so taking them away takes their energy away, and
    all of them together are the tensor.
    """
    slices = tensor.flatten(2).unbind(-1)
    subspaces = [leading_subspace(matrix) for matrix in slices]
    values = torch.cat([subspace.values for subspace in subspaces])
    largest = values.sort(descending=True, stable=True).indices[:n]
    position = largest // len(subspaces[0].values)
    outs, ins, where = [], [], []
    for number, (matrix, subspace) in enumerate(zip(slices, subspaces, strict=True)):
        count = int((position == number).sum())
        left, right = balanced_factors(matrix, subspace.vectors[:, :count])
        outs.append(left)
        ins.append(right.mT)
        where += [number] * count
    indices = np.unravel_index(where, tensor.shape[2:])
    kernel = [
        torch.eye(size, dtype=tensor.dtype, device=tensor.device)[:, torch.from_numpy(index)]
        for size, index in zip(tensor.shape[2:], indices, strict=True)
    ]
    return [torch.cat(outs, dim=1), torch.cat(ins, dim=1), *kernel]


def random_terms(tensor: Tensor, n: int, generator: torch.Generator) -> Terms:
    """Give n random terms that together have about the norm of `tensor`."""
    norm = float(tensor.norm()) / (n * tensor.numel()) ** 0.5
    terms = [torch.randn(size, n, generator=generator).to(tensor) for size in tensor.shape]
    return [terms[0] * norm, *terms[1:]]


def balanced(terms: Terms) -> Terms:
    """Spread the norm of each term evenly over the axes."""
    norms = [factor.norm(dim=0) for factor in terms]
    share = torch.stack(norms).prod(dim=0) ** (1 / len(terms))
    return [
        factor * (share / norm.where(norm > 0, 1))
        for factor, norm in zip(terms, norms, strict=True)
    ]


def squared_distance(tensor: Tensor, terms: Terms) -> float:
    """Squared norm of what `terms` do not reproduce."""
    return float((tensor - add_up(terms)).to(torch.float64).square().sum())


def improve(tensor: Tensor, terms: Terms, n_iter_max: int, tol: float) -> Terms:
    """Alternating least squares with line search (TensorLy's `parafac`) from `terms`."""
    with torch_backend():
        weights, factors = parafac(
            tensor,
            terms[0].shape[1],
            init=(None, [factor.clone() for factor in terms]),
            n_iter_max=n_iter_max,
            # TensorLy's line search reads errors that are recorded only where tol > 0.
            tol=max(tol, 1e-30),
            l2_reg=_RIDGE,
            linesearch=True,
        )
    return [factors[0] * weights, *factors[1:]]


def fit_more(unit: Tensor, terms: Terms, rank: int, cp: CP, generator: torch.Generator) -> Terms:
    """Fit `rank` terms to `unit`, a tensor of norm 1 or 0, starting from fewer."""
    n_new = rank - terms[0].shape[1]
    residual = unit - add_up(terms)
    best = [torch.cat([factor, factor.new_zeros(len(factor), n_new)], dim=1) for factor in terms]
    lost = squared_distance(unit, best)
    if lost <= (4 * torch.finfo(unit.dtype).eps) ** 2:
        return best  # what is left is rounding
    if cp.init == "svd":
        new = leading_terms(residual, n_new)
    else:
        new = random_terms(residual, n_new, generator)
    start = [torch.cat(pair, dim=1) for pair in zip(terms, new, strict=True)]
    for candidate in (start, improve(unit, start, cp.n_iter_max, cp.tol)):
        now = squared_distance(unit, candidate)
        if now < lost:
            best, lost = candidate, now
    return best


class CPFactorization(Factorization):
    """The fits at all ranks of the grid.

    Each starts from the one before, with terms added for what that one left over, and
    the best is kept: the error never grows with the rank.
    """

    def __init__(self, weight: Tensor, cp: CP):
        sizes = term_sizes(weight.shape)
        ranks = rank_grid(weight.shape, cp.n_ranks)
        tensor = weight.reshape(sizes)
        total = float(tensor.to(torch.float64).square().sum())
        generator = seeded(cp.random_state)
        # Unit norm, so that ridge and tolerance mean the same for every weight.
        unit = tensor / (total**0.5 or 1.0)
        terms = [weight.new_zeros(size, 0) for size in sizes]
        errors = []
        self._fits: dict[int, Terms] = {}
        for rank in ranks.tolist():
            terms = fit_more(unit, terms, rank, cp, generator)
            scaled = balanced([terms[0] * total**0.5, *terms[1:]])
            errors.append(squared_distance(tensor, scaled))
            self._fits[rank] = scaled
        self.curve = Curve(
            scheme=cp.scheme,
            ranks=ranks,
            costs=ranks * sum(sizes),
            # Fits that are equal differ in the last digit, by the order of summation.
            errors=np.minimum.accumulate(errors),
            total=total,
            full_rank=prod(sizes) // max(sizes),
        )

    def factors(self, weight: Tensor, rank: Rank) -> Factors:
        assert isinstance(rank, int)
        outs, ins, *kernel = self._fits[rank]
        # The input is mixed to `rank` channels, each is filtered along one axis after the
        # other, and the outputs are mixed from them.
        chain = [ins.mT, *(factor.mT for factor in kernel), outs]
        stages = cp_stages(weight.shape, rank)
        tensors = tuple(t.reshape(s.shape) for t, s in zip(chain, stages, strict=True))
        return Factors(tensors, tuple(stage.groups for stage in stages))

    def trim(self, rank: Rank) -> CPFactorization:
        assert isinstance(rank, int)
        result = copy.copy(self)
        result._fits = {rank: self._fits[rank]}
        return result


def seeded(random_state: Any) -> torch.Generator:
    """Turn a `random_state` into a generator of its own; None gives a new one each time."""
    generator = torch.Generator()
    if random_state is None:
        generator.seed()
    else:
        generator.manual_seed(int(check_random_state(random_state).randint(2**31 - 1)))
    return generator


def cp_stages(shape: Sequence[int], rank: int) -> tuple[Stage, ...]:
    """Shapes of 1 x 1, one depthwise convolution per kernel axis, 1 x 1."""
    out, inputs, *kernel = shape
    ones = (1,) * len(kernel)
    depthwise = [
        Stage((rank, 1, *(kernel[axis] if a == axis else 1 for a in range(len(kernel)))), rank)
        for axis in long_axes(shape)
    ]
    return Stage((rank, inputs, *ones)), *depthwise, Stage((out, rank, *ones))


class CP(WeightDecomposition):
    """Sum of `rank` separable terms; SVD where there is no kernel.

    A 3 x 3 kernel becomes 1 x 1 to r channels, 3 x 1 and 1 x 3 depthwise, 1 x 1 to the
    outputs, and stores r (in + 3 + 3 + out) numbers. Small, but each rank is a fit of its
    own by alternating least squares, so that only a grid of ranks is offered, and it
    takes minutes where an SVD takes a second.

    n_ranks : int, default=12
        Ranks that are fitted, spaced geometrically, up to three quarters of the weight's
        size.
    n_iter_max : int, default=50
        Sweeps of alternating least squares per rank.
    tol : float, default=1e-5
        A fit ends when the relative error falls by less than this in a sweep.
    init : {"svd", "random"}, default="svd"
        What a fit adds to the one before: the leading singular triplets of what is left,
        at each kernel position, or random terms.
    random_state : int, RandomState or None
        Seeds `init="random"`; "svd" draws nothing.

    References: Hitchcock 1927; Lebedev et al. 2015, arXiv 1412.6553; Phan et al. 2020,
    arXiv 2008.05441.
    """

    search_space: ClassVar[SearchSpace] = {
        "n_ranks": IntRange(6, 24),
        "n_iter_max": IntRange(20, 100, log=True),
    }

    def __init__(
        self,
        n_ranks: int = 12,
        n_iter_max: int = 50,
        tol: float = 1e-5,
        init: str = "svd",
        random_state: Any = None,
    ):
        self.n_ranks = n_ranks
        self.n_iter_max = n_iter_max
        self.tol = tol
        self.init = init
        self.random_state = random_state

    @property
    def scheme(self) -> str:
        return "cp"

    def factorize_weight(self, weight: Tensor) -> Factorization:
        if self.n_ranks < 1:
            raise ValueError(f"n_ranks of CP must be 1 or more; got {self.n_ranks!r}")
        if self.init not in ("svd", "random"):
            raise ValueError(f"init of CP must be 'svd' or 'random'; got {self.init!r}")
        if not long_axes(weight.shape):
            return TruncatedSVD(weight, self.scheme)
        return CPFactorization(weight, self)

    def stages(self, shape: Sequence[int], rank: Rank) -> tuple[Stage, ...]:
        assert isinstance(rank, int)
        return cp_stages(shape, rank) if long_axes(shape) else matrix_stages(shape, rank)
