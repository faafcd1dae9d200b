"""Reduced-rank regression: the factors that best reproduce outputs from given inputs.

A layer with unfolded weight W (o, n) is to give outputs y from inputs x. Of these only second
moments are known: A = E[x x^T], C = E[y x^T] and E[|y|^2]. Where y = W x that is C = W A, and the
best factors are the truncated SVD in the metric of the activations; where y are the outputs of
the original network and x the inputs that an already compressed one gives, the factors make up for
what was lost before.

Where errors of the outputs count as |R e|^2, all of this is done for R y, and R undone.

Every scheme is the same two steps. The first factor V (r, c) reads the c columns of an unfolding:
the leading directions of the regression W* = C A^-1 in the metric of these columns. It is applied
at each of the k places of the kernel axes that the unfolding leaves over, so that
z = (V (x) I_k) x = B x; the second factor is then exact least squares of y on z.

References: Izenman 1975 (reduced-rank regression); Zhang et al. 2015, arXiv 1505.06798 (anchored to
the original's outputs); Wang et al. 2024, arXiv 2403.07378 (whitening by the inputs).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..linalg import balance, break_even, cholesky, right_directions
from ..protocols import Curve, Factorization, Factors, Metric, Rank, Spectrum
from ..unfolding import unfold

Fold = Callable[[Tensor, Tensor, Sequence[int]], Factors]


class RegressionFactorization(Factorization):
    """Factors of one weight in the metric of its inputs, at every rank that saves numbers.

    unfolding : which matrix; fold : gives the factors of (rows, r) and (r, columns);
    scheme : the name that the report shows; every_rank : also ranks that save nothing;
    only : the largest rank that is asked for
    """

    def __init__(
        self,
        weight: Tensor,
        unfolding: str,
        fold: Fold,
        scheme: str,
        metric: Metric,
        every_rank: bool = False,
        only: int | None = None,
    ):
        out = weight.shape[0]
        rows, columns = unfold(weight, unfolding).shape
        places = rows // out
        inputs, cross = metric.inputs, metric.seen(metric.cross)
        regression = inputs.solve(cross)
        if places > 1:
            # Inputs in the order (places, columns): places are what of the kernel is in the rows.
            numbers = torch.arange(weight[0].numel(), device=weight.device)
            order = unfold(numbers.reshape(1, *weight.shape[1:]), unfolding).flatten()
            inputs, cross, regression = inputs.of(order), cross[:, order], regression[:, order]
        of_columns = inputs.mean_of_blocks(places)
        most = min(rows, columns)
        if only is not None:
            most = only
        elif not every_rank:
            most = min(most, break_even(rows, columns))
        white = of_columns.whiten(regression.reshape(rows, columns))
        values, directions = right_directions(white)
        # Rows of the first factor, at every rank the first so many of them: Z^T L^-1.
        self._right = of_columns.unwhiten(directions[:, :most].mT)
        told = torch.einsum("rc,okc->rko", self._right, cross.reshape(out, places, columns))
        told = told.reshape(most * places, out)
        self._root = None
        if places > 1:  # what is read at one place alone is white already
            self._root = cholesky(inputs.read_by(self._right, places))
            # Row i: what the i-th number of z, less what those before it say, tells about y.
            told = torch.linalg.solve_triangular(self._root, told, upper=False)
        gained = told.square().sum(1).reshape(most, places).sum(1).cumsum(0)
        self._told = metric.unseen(told.mT).mT
        ranks = np.arange(1, most + 1)
        self._fold, self._places = fold, places
        self.curve = Curve(
            scheme=scheme,
            ranks=ranks,
            costs=ranks * (rows + columns),
            errors=(metric.energy - gained).clamp_(min=0).cpu().numpy(),
            total=metric.energy,
            full_rank=min(rows, columns),
            spectra=(Spectrum(values.cpu().numpy(), (rows, columns)),),
        )

    def factors(self, weight: Tensor, rank: Rank) -> Factors:
        assert isinstance(rank, int)
        n = rank * self._places
        left = self._told[:n]
        if self._root is not None:
            left = torch.linalg.solve_triangular(self._root[:n, :n].mT, left, upper=True)
        left = left.reshape(rank, self._places, -1).permute(2, 1, 0).flatten(0, 1)
        left, right = balance(left, self._right[:rank])
        return self._fold(left.to(weight.dtype), right.to(weight.dtype), weight.shape)

    def trim(self, rank: Rank) -> RegressionFactorization:
        assert isinstance(rank, int)
        n = rank * self._places
        result = copy.copy(self)
        result._right = self._right[:rank].clone()
        result._root = None if self._root is None else self._root[:n, :n].clone()
        result._told = self._told[:n].clone()
        return result


def least_squares(weight: Tensor, metric: Metric) -> Tensor:
    """Weight of any rank, of the shape of `weight`, that best gives the outputs from the inputs."""
    return metric.inputs.solve(metric.cross).reshape(weight.shape).to(weight.dtype)
