"""Shapes of tensor trains: which ranks are offered, what they cost, which stages they give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from math import prod

import numpy as np

from skcompress.protocols import Stage

from .truncated_svd import long_axes


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
