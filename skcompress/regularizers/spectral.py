"""Penalties on the singular values of an unfolded weight."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import RegularizerValueError
from ..linalg import short_side
from ..spaces import Options, SearchSpace
from ..unfolding import SCHEMES, fitting, fold, unfold
from .closed_form import ClosedForm


class Spectral(ClosedForm):
    """Base of penalties on singular values; a subclass writes `spectral`.

    scheme : {"output", "input", "spatial"}
        Which matrix a convolution is unfolded to: take the one by which it will be
        compressed. "spatial" falls back to "output" on layers without two kernel axes.
    """

    search_space: ClassVar[SearchSpace] = {"scheme": Options(SCHEMES)}

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
        unfolded = self._unfold(weight)
        value, gradient = self.spectral(unfolded.short)
        return value, unfolded.fold(gradient)

    def gradients(self, weights: Sequence[Tensor]) -> Iterable[Tensor]:
        # A GPU does many small problems of one size together in the time of one; a CPU
        # gains nothing and would copy the weights.
        if not weights or not weights[0].is_cuda:
            return super().gradients(weights)
        return self.stacked_gradients(weights)

    def stacked_gradients(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Give the gradients of `weights`, solving matrices of equal shape together."""
        unfolded = [self._unfold(weight) for weight in weights]
        alike: dict[Any, list[int]] = defaultdict(list)
        for i, one in enumerate(unfolded):
            alike[one.short.shape, one.short.dtype, one.short.device].append(i)
        found: dict[int, Tensor] = {}
        for members in alike.values():
            stack = torch.stack([unfolded[i].short for i in members])
            for i, gradient in zip(members, self.spectral(stack)[1], strict=True):
                found[i] = unfolded[i].fold(gradient)
        return [found[i] for i in range(len(weights))]

    def _unfold(self, weight: Tensor) -> _Unfolded:
        if self.scheme not in SCHEMES:
            rule = "one of " + ", ".join(map(repr, SCHEMES))
            raise RegularizerValueError(type(self).__name__, "scheme", rule, self.scheme)
        return _Unfolded(weight, self.scheme)


class _Unfolded:
    """A weight as a matrix with no more rows than columns, and the way back.

    short : Tensor of shape (m, n), m <= n
    """

    def __init__(self, weight: Tensor, scheme: str):
        self._scheme = fitting(scheme, weight.shape)
        self._order = list(range(weight.dim()))
        if self._scheme == "output":
            # The order of columns does not matter to singular values, and to follow that
            # of the memory (channels last) saves copying the weight and the gradient.
            self._order[1:] = sorted(self._order[1:], key=weight.stride, reverse=True)
        ordered = weight.permute(self._order)
        self._shape = ordered.shape
        matrix = unfold(ordered, self._scheme)
        self._tall = matrix.shape[0] > matrix.shape[1]
        self.short = short_side(matrix)

    def fold(self, gradient: Tensor) -> Tensor:
        """Give a matrix (m, n) the shape of the weight."""
        folded = fold(gradient.mT if self._tall else gradient, self._scheme, self._shape)
        return folded.permute([self._order.index(a) for a in range(folded.dim())])
