"""Tensor trains: a convolution as a chain along its inputs, kernel axes and outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from math import prod

import numpy as np
import torch
from skcompress.linalg import gram, leading_subspace, short_side, tail_energies
from skcompress.protocols import Curve, Decomposition, Factorization, Factors, Rank, Stage
from tensorly.decomposition import tensor_train
from torch import Tensor

from .backend import torch_backend
from .truncated_svd import TruncatedSVD, long_axes, matrix_stages

# How much finer the ranks of the last inner bond lie: they cost no SVD of their own.
_FINER = 5


def core_sizes(shape: Sequence[int]) -> tuple[int, ...]:
    """Sizes of the axes that the train runs along: in, kernel axes longer than 1, out."""
    return (shape[1], *(shape[2 + axis] for axis in long_axes(shape)), shape[0])


# --- which ranks, at what cost: shapes only --------------------------------------------


def segmentations(n_cores: int) -> Iterator[list[tuple[int, int]]]:
    """Every way to merge neighbouring cores: lists of (first, one past last) of each stage."""
    for keeps_bond in product((False, True), repeat=n_cores - 1):
        edges = [0, *(bond + 1 for bond, kept in enumerate(keeps_bond) if kept), n_cores]
        yield list(pairwise(edges))


def cheapest_segmentation(sizes: Sequence[int], ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge neighbouring cores wherever that stores fewer numbers.

    ranks : int array (n, bonds)
    Returns which of `segmentations` it is, int array (n,), and the stored numbers (n,).
    """
    bonds = np.pad(ranks, ((0, 0), (1, 1)), constant_values=1)
    costs = np.stack(
        [
            sum(bonds[:, a] * prod(sizes[a:b]) * bonds[:, b] for a, b in stages)
            for stages in segmentations(len(sizes))
        ]
    )
    best = costs.argmin(axis=0)
    return best, costs.min(axis=0)


def geometric(largest: int, n: int) -> np.ndarray:
    """Up to n whole numbers from 1 to `largest`, spaced geometrically."""
    return np.unique(np.geomspace(1, largest, max(n, 2)).round().astype(np.int64))


def rank_options(sizes: Sequence[int], n_ranks: int) -> tuple[np.ndarray, np.ndarray]:
    """Ranks that are offered for these core sizes, and their costs, ascending.

    The bonds take values of one geometric grid, and the largest value that they can
    have. Left out is what merges two cores although the bond between them was cut: with
    that bond whole, the merged core is as large and loses less.

    Returns int arrays (n, bonds) and (n,).
    """
    n_bonds = len(sizes) - 1
    n_each = round(n_ranks ** (2 / max(n_bonds - 1, 1)))
    largest = [min(prod(sizes[: b + 1]), prod(sizes[b + 1 :])) for b in range(n_bonds)]
    ends = geometric(max(largest[0], largest[-1]), n_each)
    grids = [np.unique(np.minimum(ends, m)) for m in largest]
    if n_bonds > 2:
        grids[-2] = np.union1d(grids[-2], geometric(largest[-2], _FINER * n_each))
    ranks = np.stack(np.meshgrid(*grids, indexing="ij"), axis=-1).reshape(-1, n_bonds)
    bounds = inner_bounds(sizes, ranks)
    ranks[:, 1:-1] = bounds[:, 1:-1]
    ranks = np.unique(ranks, axis=0)

    chosen, costs = cheapest_segmentation(sizes, ranks)
    whole = np.column_stack(
        [ranks[:, b] == largest[b] if b in (0, n_bonds - 1) else ranks[:, b] == limit
         for b, limit in enumerate(neighbour_limits(sizes, ranks).T)]
    )  # fmt: skip
    keeps_bond = np.array(list(product((False, True), repeat=n_bonds)))[chosen]
    good = np.flatnonzero((keeps_bond | whole).all(axis=1))
    good = good[np.lexsort((*ranks[good].T[::-1], costs[good]))]
    return ranks[good], costs[good]
