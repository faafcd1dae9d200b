"""Tensor trains: a convolution as a chain along its inputs, kernel axes and outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from math import prod

import numpy as np
import torch
from tensorly.decomposition import tensor_train
from torch import Tensor

from skcompress.linalg import leading_subspace, short_side
from skcompress.protocols import Curve, Decomposition, Factorization, Factors, Rank, Stage

from .backend import torch_backend
from .truncated_svd import TruncatedSVD, long_axes, matrix_stages

# --- which ranks, at what cost: shapes only --------------------------------------------


def core_sizes(shape: Sequence[int]) -> tuple[int, ...]:
    """Sizes of the axes that the train runs along: in, kernel axes longer than 1, out."""
    return (shape[1], *(shape[2 + axis] for axis in long_axes(shape)), shape[0])


def segmentations(n_cores: int) -> Iterator[list[tuple[int, int]]]:
    """Every way to merge neighbouring cores: (first, one past last) of each stage.

    In the order of `itertools.product((False, True), ...)` over "this bond stays".
    """
    for stays in product((False, True), repeat=n_cores - 1):
        edges = [0, *(bond + 1 for bond, kept in enumerate(stays) if kept), n_cores]
        yield list(pairwise(edges))


def cheapest_segmentation(sizes: Sequence[int], ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge neighbouring cores wherever that stores fewer numbers.

    ranks : int array (n, bonds)
    Returns the position in `segmentations`, int array (n,), and the stored numbers (n,).
    """
    bonds = np.pad(ranks, ((0, 0), (1, 1)), constant_values=1)
    costs = np.stack(
        [
            sum(bonds[:, a] * prod(sizes[a:b]) * bonds[:, b] for a, b in stages)
            for stages in segmentations(len(sizes))
        ]
    )
    return costs.argmin(axis=0), costs.min(axis=0)


def geometric(largest: int, n: int) -> np.ndarray:
    """Up to n whole numbers from 1 to `largest`, spaced geometrically."""
    return np.unique(np.geomspace(1, largest, n).round().astype(np.int64))


def whole_bonds(sizes: Sequence[int], ranks: np.ndarray) -> np.ndarray:
    """Ranks at which each bond cuts nothing, given the bonds further out; like `ranks`.

    The train is cut from both ends inwards: first the outermost two bonds, between them
    the next two, and so on.
    """
    limits = np.empty_like(ranks)
    left, right = np.ones_like(ranks[:, 0]), np.ones_like(ranks[:, 0])
    for i in range((ranks.shape[1] + 1) // 2):
        j = ranks.shape[1] - 1 - i
        left, right = left * sizes[i], right * sizes[j + 1]
        between = prod(sizes[i + 1 : j + 1])
        limits[:, i] = np.minimum(left, between * right)
        limits[:, j] = np.minimum(right, between * left)
        left, right = ranks[:, i], ranks[:, j]
    return limits


def rank_options(sizes: Sequence[int], n_ranks: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranks that are offered for cores of these sizes, and what they cost, ascending.

    Bonds take the values of one geometric grid, and the value at which they cut nothing.
    Left out is what merges two cores across a bond that was cut: with that bond whole,
    the merged core is as large and loses less.

    Returns int arrays (n, bonds) and (n,).
    """
    n_bonds = len(sizes) - 1
    largest = [min(prod(sizes[: b + 1]), prod(sizes[b + 1 :])) for b in range(n_bonds)]
    coarse = geometric(max(largest[0], largest[-1]), n_ranks)
    # The innermost bond, or pair of bonds, has all its losses from one factorisation.
    odd = n_bonds % 2 == 1
    fine = np.arange(1, max(largest) + 1) if odd else geometric(max(largest), 4 * n_ranks)
    innermost = {(n_bonds - 1) // 2, n_bonds // 2}
    grids = [
        np.unique(np.minimum(np.union1d(coarse, fine) if b in innermost else coarse, most))
        for b, most in enumerate(largest)
    ]
    ranks = np.stack(np.meshgrid(*grids, indexing="ij"), axis=-1).reshape(-1, n_bonds)
    # Outer bonds first: the limits of the inner ones depend on them.
    for _ in range((n_bonds + 1) // 2):
        ranks = np.minimum(ranks, whole_bonds(sizes, ranks))
    ranks = np.unique(ranks, axis=0)
    chosen, costs = cheapest_segmentation(sizes, ranks)
    stays = np.array(list(product((False, True), repeat=n_bonds)))[chosen]
    good = np.flatnonzero((stays | (ranks == whole_bonds(sizes, ranks))).all(axis=1))
    good = good[np.argsort(costs[good], kind="stable")]
    return ranks[good], costs[good]


# --- what is lost ----------------------------------------------------------------------


def end_bases(block: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal bases of the first and the last axis of a tensor, by falling energy."""
    return channel_basis(block.flatten(1)), channel_basis(block.flatten(0, -2).mT)


def channel_basis(matrix: Tensor) -> Tensor:
    """Left singular vectors (rows, min(rows, columns)) of a matrix, in its precision."""
    vectors = leading_subspace(matrix).vectors
    if short_side(matrix) is not matrix:
        # They belong to the other side. Q of a QR decomposition is orthonormal where
        # singular values vanish too.
        vectors = torch.linalg.qr(matrix @ vectors.to(matrix.dtype)).Q
    return vectors.to(matrix.dtype)


def project_ends(block: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Coordinates of `block` (m, ..., n) in the bases (m, p) and (n, q): (p, ..., q)."""
    return torch.tensordot(first.mT, block, dims=([1], [0])) @ last


def join_ends(block: Tensor) -> Tensor:
    """Let the outermost axes swallow their neighbours: (p, a, ..., b, q) to (pa, ..., bq)."""
    if block.dim() == 3:
        return block.flatten()
    return block.flatten(0, 1).flatten(-2)


def losses(block: Tensor, ranks: np.ndarray) -> np.ndarray:
    """Squared norm that a train through `block` loses at each of `ranks`.

    block : Tensor (m, ..., n), one axis per core
    ranks : int array (options, axes - 1)

    All cuts are orthogonal projections, each inside the one before, so what they lose
    adds up exactly. The two ends are cut by a truncated higher-order SVD, and what is
    between them in the same way.
    """
    if block.dim() == 2:
        short = short_side(block).to(torch.float64)
        energies = torch.linalg.eigvalsh(short @ short.mT).flip(0).clamp_(min=0)
        return tails(energies).cpu().numpy()[ranks[:, 0] - 1]
    return core_losses(project_ends(block, *end_bases(block)), ranks)


def core_losses(core: Tensor, ranks: np.ndarray) -> np.ndarray:
    """Do what `losses` does, for a block whose ends are in the coordinates of their bases."""
    beyond = energy_beyond(core)
    lost = beyond[ranks[:, 0] - 1, ranks[:, -1] - 1]
    if core.dim() == 3:
        return lost
    pairs, members = np.unique(ranks[:, [0, -1]], axis=0, return_inverse=True)
    for number, (p, q) in enumerate(pairs):
        rows = np.flatnonzero(members.ravel() == number)
        lost[rows] += losses(join_ends(core[:p, ..., :q]), ranks[rows, 1:-1])
    return lost


def energy_beyond(block: Tensor) -> np.ndarray:
    """Squared norm outside the leading (p, ..., q) of `block`, for all p and q from 1.

    Summed from the small end, so that tiny losses are not lost in the total.
    """
    energy = block.to(torch.float64).square().flatten(1, -2).sum(1)
    rows = tails(energy.sum(1))  # beyond row p, in any column
    columns = tails(energy.cumsum(0))  # beyond column q, in the first p rows
    return (rows[:, None] + columns).cpu().numpy()


def tails(values: Tensor) -> Tensor:
    """Sum of what follows each value along the last axis: 0 at the end."""
    sums = values.flip(-1).cumsum(-1).flip(-1)
    return torch.cat([sums[..., 1:], torch.zeros_like(sums[..., :1])], dim=-1)


# --- the factors -----------------------------------------------------------------------


def cut_inner_ends(block: Tensor, ranks: Sequence[int]) -> Tensor:
    """Project `block` as `losses` does, all but the innermost bond; same shape."""
    if block.dim() < 3:
        return block
    first, last = end_bases(block)
    first, last = first[:, : ranks[0]], last[:, : ranks[-1]]
    core = project_ends(block, first, last)
    core = cut_inner_ends(join_ends(core), ranks[1:-1]).reshape(core.shape)
    return project_ends(core, first.mT, last.mT)


def kernel_cores(block: Tensor, ranks: Sequence[int]) -> list[Tensor]:
    """Cores (r, size, r') of the train through the kernel axes.

    block : Tensor (p, *kernel, q), of which the two ends are cut already
    ranks : of the bonds between the kernel axes
    """
    joined = join_ends(block)
    if joined.dim() == 1:
        return [block]
    with torch_backend():
        cores = tensor_train(cut_inner_ends(joined, ranks), rank=[1, *ranks, 1]).factors
    first = cores[0].reshape(*block.shape[:2], -1)
    last = cores[-1].reshape(-1, *block.shape[-2:])
    return [first, *cores[1:-1], last]


def merged_kernel(cores: Sequence[Tensor]) -> Tensor:
    """Multiply neighbouring cores to a kernel (out_j, in_j, *sizes).

    The first and the last core of a train have bonds of size 1 there.
    """
    kernel = cores[0]
    for core in cores[1:]:
        kernel = torch.tensordot(kernel, core, dims=([-1], [0]))
    return kernel.movedim(-1, 0)


class TensorTrainFactorization(Factorization):
    """The bases of the two channel axes; the cores between them are computed on demand."""

    def __init__(self, weight: Tensor, n_ranks: int, scheme: str):
        sizes = core_sizes(weight.shape)
        ranks, costs = rank_options(sizes, n_ranks)
        tensor = as_train(weight)
        self._first, self._last = end_bases(tensor)
        self.curve = Curve(
            scheme=scheme,
            ranks=ranks,
            costs=costs,
            errors=core_losses(project_ends(tensor, self._first, self._last), ranks),
            total=float(weight.to(torch.float64).square().sum()),
            full_rank=tuple(ranks[-1].tolist()),
        )

    def factors(self, weight: Tensor, rank: Rank) -> Factors:
        assert isinstance(rank, tuple)
        first, last = self._first[:, : rank[0]], self._last[:, : rank[-1]]
        block = project_ends(as_train(weight), first, last)
        cores = [first, *kernel_cores(block, rank[1:-1]), last.mT]
        stages = train_stages(weight.shape, rank)
        segments = stage_segments(weight.shape, rank)
        tensors = tuple(
            merged_kernel(cores[a:b]).reshape(stage.shape)
            for (a, b), stage in zip(segments, stages, strict=True)
        )
        return Factors(tensors, (1,) * len(tensors))

    def trim(self, rank: Rank) -> TensorTrainFactorization:
        assert isinstance(rank, tuple)
        self._first = self._first[:, : rank[0]].clone()
        self._last = self._last[:, : rank[-1]].clone()
        return self


def as_train(weight: Tensor) -> Tensor:
    """View a weight (out, in, *kernel) as (in, *kernel axes longer than 1, out)."""
    return weight.movedim(0, -1).reshape(*core_sizes(weight.shape))


def stage_segments(shape: Sequence[int], rank: Sequence[int]) -> list[tuple[int, int]]:
    """Which cores each stage consists of: (first, one past last)."""
    sizes = core_sizes(shape)
    chosen, _ = cheapest_segmentation(sizes, np.array([rank]))
    return list(segmentations(len(sizes)))[int(chosen[0])]


def train_stages(shape: Sequence[int], rank: Sequence[int]) -> tuple[Stage, ...]:
    """Shapes (out_j, in_j, *kernel_j) of the stages at `rank`."""
    bonds = (shape[1], *rank, shape[0])
    axes = long_axes(shape)
    stages = []
    for a, b in stage_segments(shape, rank):
        own = {axes[core - 1] for core in range(a, b) if 1 <= core <= len(axes)}
        kernel = (size if axis in own else 1 for axis, size in enumerate(shape[2:]))
        stages.append(Stage((bonds[b if b <= len(rank) else -1], bonds[a], *kernel)))
    return tuple(stages)


class TensorTrain(Decomposition):
    """Tensor train along inputs, kernel axes and outputs; SVD where there is no kernel.

    A 3 x 3 kernel becomes 1 x 1, 3 x 1, 1 x 3, 1 x 1 with r1, r2, r3 channels between.
    Where it stores fewer numbers, neighbours are merged to one convolution: a bond that
    cuts nothing is not kept. So the family has familiar members (r2 whole is Tucker-2, r1
    and r3 whole the spatial SVD, r1 and r2 whole the channel SVD) and all mixtures; an
    allocation takes the one that loses least for its size.

    The rank is a tuple, one number per bond, where there is a kernel.

    n_ranks : int, default=16
        Values that each outer bond may take, spaced geometrically; the bond in the
        middle may take all. `factorize` computes up to n_ranks ** 2 sets of singular
        values, from matrices that are mostly much smaller than the weight.

    References: Oseledets 2011, SIAM J. Sci. Comput. 33(5); Garipov et al. 2016,
    arXiv 1611.03214.
    """

    def __init__(self, n_ranks: int = 16):
        self.n_ranks = n_ranks

    @property
    def scheme(self) -> str:
        return "tensor_train"

    def factorize(self, weight: Tensor) -> Factorization:
        if self.n_ranks < 2:
            raise ValueError(f"n_ranks of TensorTrain must be 2 or more; got {self.n_ranks!r}")
        if not long_axes(weight.shape):
            return TruncatedSVD(weight, self.scheme)
        return TensorTrainFactorization(weight, self.n_ranks, self.scheme)

    def stages(self, shape: Sequence[int], rank: Rank) -> tuple[Stage, ...]:
        if isinstance(rank, int):
            return matrix_stages(shape, rank)
        return train_stages(shape, rank)
