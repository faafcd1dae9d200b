"""Penalties on the singular values of an unfolded weight."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import RegularizerValueError
from ..linalg import short_side
from ..unfolding import SCHEMES, fold, unfold
from .closed_form import ClosedForm


class Spectral(ClosedForm):
    """Base of penalties on singular values; a subclass writes `spectral`.

    scheme : {"output", "input", "spatial"}
        Which matrix a convolution is unfolded to: take the one by which it will be
        compressed. "spatial" falls back to "output" on layers without two kernel axes.
    """

    def __init__(
        self,
        weight: float = 1e-4,
        *,
        scheme: str = "output",
        every: int = 1,
        layers: Any = None,
        exclude: Any = (),
    ):
        super().__init__(weight, every=every, layers=layers, exclude=exclude)
        self.scheme = scheme

    @abstractmethod
    def spectral(self, short: Tensor) -> tuple[Tensor, Tensor]:
        """Give penalties (...) and gradients (..., m, n) of matrices (..., m, n), m <= n."""

    def evaluate(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        matrix = self._unfold(weight)
        value, gradient = self.spectral(short_side(matrix))
        return value, self._fold(gradient, matrix.shape, weight.shape)

    def gradients(self, weights: Sequence[Tensor]) -> list[Tensor]:
        # A GPU does many small problems of one size together in the time of one; a CPU
        # gains nothing and would copy the weights.
        if not weights or not weights[0].is_cuda:
            return super().gradients(weights)
        return self.stacked_gradients(weights)

    def stacked_gradients(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Give the gradients of `weights`, solving matrices of equal shape together."""
        matrices = [self._unfold(weight) for weight in weights]
        alike: dict[Any, list[int]] = defaultdict(list)
        for i, matrix in enumerate(matrices):
            short = short_side(matrix)
            alike[short.shape, matrix.dtype, matrix.device].append(i)
        found: dict[int, Tensor] = {}
        for members in alike.values():
            stack = torch.stack([short_side(matrices[i]) for i in members])
            for i, gradient in zip(members, self.spectral(stack)[1], strict=True):
                found[i] = self._fold(gradient, matrices[i].shape, weights[i].shape)
        return [found[i] for i in range(len(weights))]

    def _unfold(self, weight: Tensor) -> Tensor:
        if self.scheme not in SCHEMES:
            rule = "one of " + ", ".join(map(repr, SCHEMES))
            raise RegularizerValueError(type(self).__name__, "scheme", rule, self.scheme)
        return unfold(weight, self.scheme)

    def _fold(self, gradient: Tensor, matrix: Sequence[int], weight: Sequence[int]) -> Tensor:
        tall = matrix[0] > matrix[1]
        return fold(gradient.mT if tall else gradient, self.scheme, weight)
