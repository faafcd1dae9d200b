"""Tucker-2 decomposition: both channel axes of a convolution get smaller."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from ..linalg import leading_subspace, short_side
from ..protocols import (
    Curve,
    Factorization,
    Factors,
    Metric,
    Rank,
    Spectrum,
    Stage,
    WeightDecomposition,
)
from ..unfolding import unfold
from .regression import RegressionFactorization
from .svd import SVD, MatrixFactorization, fold_output

# Turns of improving two bases, and what a further one has to gain of what is lost.
_TURNS = 30
_GAIN = 5e-6


def channel_basis(unfolded: Tensor) -> tuple[Tensor, Spectrum]:
    """Left singular vectors (rows, min(rows, columns)) of an unfolding, float64."""
    subspace = leading_subspace(unfolded)
    spectrum = Spectrum(subspace.values.cpu().numpy(), (unfolded.shape[0], unfolded.shape[1]))
    if short_side(unfolded) is unfolded:
        return subspace.vectors.to(torch.float64), spectrum
    # More rows than columns: the vectors are on the other side. Q of a QR decomposition
    # is orthonormal where singular values vanish too.
    other = unfolded.to(torch.float64) @ subspace.vectors.to(torch.float64)
    return torch.linalg.qr(other).Q, spectrum


def mix_channels(weight: Tensor, out_mix: Tensor, in_mix: Tensor) -> Tensor:
    """Apply `out_mix` (p, out) and `in_mix` (q, in) to the channel axes of `weight`."""
    mixed = torch.tensordot(out_mix, weight, dims=([1], [0]))
    return torch.tensordot(mixed, in_mix, dims=([1], [1])).movedim(-1, 1)


def improved_bases(weight: Tensor, outs: Tensor, ins: Tensor) -> tuple[Tensor, Tensor]:
    """Bases of the channel axes whose core keeps more of `weight`, by turns, until none gains.

    weight : Tensor of shape (out, in, *kernel)
    outs, ins : Tensors of shape (out, p) and (in, q) with orthonormal columns, to begin with

    Each is the best there is for the other (higher-order orthogonal iteration): the leading
    singular vectors of what the other leaves. O(out in kernel (p + q)) for each turn.
    """
    total, p, q = energy(weight), outs.shape[1], ins.shape[1]
    kept = energy(mix_channels(weight, outs.mT, ins.mT))
    for _ in range(_TURNS):
        new_outs = leading_basis(torch.tensordot(weight, ins, dims=([1], [0])).flatten(1), p)
        reduced = torch.tensordot(new_outs.mT, weight, dims=([1], [0])).movedim(1, 0).flatten(1)
        new_ins = leading_basis(reduced, q)
        now = energy(new_ins.mT @ reduced)
        # Where one rank is too large for the other, there are not so many vectors.
        if now <= kept or new_outs.shape != outs.shape or new_ins.shape != ins.shape:
            break
        outs, ins, gained, kept = new_outs, new_ins, now - kept, now
        # Below the second there is rounding.
        if gained <= max(_GAIN * (total - kept), 1e-8 * total):
            break
    return outs, ins


def leading_basis(matrix: Tensor, n: int) -> Tensor:
    """Leading left singular vectors (rows, n) of a matrix, in its dtype."""
    basis, _ = channel_basis(matrix)
    return basis[:, :n].to(matrix.dtype)


def energy(tensor: Tensor) -> float:
    """Squared norm, summed in float64."""
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2


class TuckerFactorization(Factorization):
    """Truncated higher-order SVD of the two channel axes, at every pair of ranks.

    improved : whether factors are of bases that keep more than the singular vectors of the whole
        weight do, which takes some turns for each pair; errors are bounds then

    Projecting on the leading p output and q input vectors keeps exactly the energy of
    the leading (p, q) block of the core, so two cumulative sums give the error of all
    pairs at once. Only pairs that no other beats in both size and error are offered,
    and those with p = q.
    """

    def __init__(self, weight: Tensor, scheme: str, improved: bool):
        self._improved = improved
        out, inputs, *kernel = weight.shape
        out_basis, out_spectrum = channel_basis(unfold(weight, "output"))
        in_basis, in_spectrum = channel_basis(unfold(weight, "input").mT)
        core = mix_channels(weight.to(torch.float64), out_basis.mT, in_basis.mT)
        energy = core.square().flatten(2).sum(-1)
        total = float(energy.sum())
        # What a pair loses: energy beyond row p or beyond column q. Summed from the small
        # end, so that tiny losses are not lost in the total.
        beyond = energy.flip(0, 1).cumsum(0).cumsum(1).flip(0, 1)
        rows = torch.cat([beyond[1:, :1], beyond.new_zeros(1, 1)])
        columns = energy.cumsum(0).flip(1).cumsum(1).flip(1)
        columns = torch.cat([columns[:, 1:], columns.new_zeros(len(columns), 1)], dim=1)
        lost = (rows + columns).cpu().numpy()

        p, q = np.indices(lost.shape) + 1
        costs = inputs * q + prod(kernel) * p * q + out * p
        keep = undominated(costs.ravel(), lost.ravel()) | (p == q).ravel()
        order = np.flatnonzero(keep)
        order = order[np.lexsort((lost.ravel()[order], costs.ravel()[order]))]
        self._out_basis = out_basis.to(weight.dtype)
        self._in_basis = in_basis.to(weight.dtype)
        self.curve = Curve(
            scheme=scheme,
            ranks=np.stack([p.ravel()[order], q.ravel()[order]], axis=1),
            costs=costs.ravel()[order],
            errors=lost.ravel()[order],
            total=total,
            full_rank=(lost.shape[0], lost.shape[1]),
            spectra=(out_spectrum, in_spectrum),
        )

    def factors(self, weight: Tensor, rank: Rank) -> Factors:
        assert isinstance(rank, tuple)
        ones = (1,) * (weight.dim() - 2)
        out_basis = self._out_basis[:, : rank[0]]
        in_basis = self._in_basis[:, : rank[1]]
        if self._improved:
            out_basis, in_basis = improved_bases(weight, out_basis, in_basis)
        core = mix_channels(weight, out_basis.mT, in_basis.mT)
        tensors = (
            in_basis.mT.reshape(*in_basis.mT.shape, *ones),
            core,
            out_basis.reshape(*out_basis.shape, *ones),
        )
        return Factors(tensors, (1, 1, 1))

    def trim(self, rank: Rank) -> TuckerFactorization:
        assert isinstance(rank, tuple)
        result = copy.copy(self)
        result._out_basis = self._out_basis[:, : rank[0]].clone()
        result._in_basis = self._in_basis[:, : rank[1]].clone()
        return result


def undominated(costs: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Mark the options that no other beats in cost and error both; boolean (n,)."""
    order = np.lexsort((errors, costs))
    best_before = np.concatenate([[np.inf], np.minimum.accumulate(errors[order])[:-1]])
    keep = np.zeros(len(costs), dtype=bool)
    keep[order] = errors[order] < best_before
    return keep


class Tucker(WeightDecomposition):
    """Tucker-2 on convolutions (1 x 1, k x k between fewer channels, 1 x 1), SVD elsewhere.

    The rank is a pair (outputs, inputs) where there is a kernel, and a number elsewhere.
    An int asks for that many of both.

    Errors are those of the higher-order SVD, known for all pairs at once. Factors of a weight
    alone are of bases that are improved by turns, and lose up to 10 % less. With inputs the
    last factor is fitted to them instead.

    References: De Lathauwer et al. 2000 (HOSVD, and "On the best rank-1 and rank-(R1, R2, ..., RN)
    approximation of higher-order tensors", HOOI); Kim et al. 2016, arXiv 1511.06530.
    """

    @property
    def scheme(self) -> str:
        return "tucker"

    def factorize_weight(self, weight: Tensor) -> Factorization:
        if prod(weight.shape[2:]) == 1:
            return MatrixFactorization(weight, "output", fold_output, self.scheme)
        return TuckerFactorization(weight, self.scheme, improved=False)

    def factorize(
        self, weight: Tensor, metric: Metric | None = None, asked: Collection[int] = ()
    ) -> Factorization:
        if metric is not None and prod(weight.shape[2:]) == 1:
            return RegressionFactorization(weight, "output", fold_output, self.scheme, metric)
        if metric is None and prod(weight.shape[2:]) > 1:
            return TuckerFactorization(weight, self.scheme, improved=True)
        return super().factorize(weight, metric, asked)

    def factorize_at(
        self, weight: Tensor, metric: Metric, rank: Rank, known: Factorization | None = None
    ) -> Factorization:
        if isinstance(rank, int):
            return self.factorize(weight, metric)
        return super().factorize_at(weight, metric, rank, known)

    def stages(self, shape: Sequence[int], rank: Rank) -> tuple[Stage, ...]:
        if prod(shape[2:]) == 1:
            return SVD().stages(shape, rank)
        assert isinstance(rank, tuple)
        out, inputs, *kernel = shape
        ones = (1,) * len(kernel)
        p, q = rank
        return Stage((q, inputs, *ones)), Stage((p, q, *kernel)), Stage((out, p, *ones))
