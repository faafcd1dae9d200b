"""Penalties on the singular values of an unfolded weight."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import RegularizerValueError
from ..linalg import short_side
from ..spaces import Options, SearchSpace
from ..threads import side_by_side
from ..unfolding import SCHEMES, fitting, fold, unfold
from .closed_form import ClosedForm

# Multiplications below which starting threads takes longer than what they save.
_WORTH_THREADS = 10**8


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
    def spectral(self, short: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give penalties (...) of matrices (..., m, n), m <= n, and their gradients in two parts.

        The gradient has the singular vectors of the matrix M: it is L M with a symmetric L.
        Given are L (..., m, m) and M, or multiples of both where they are huge or tiny.
        """

    def evaluate(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        unfolded = self._unfold(weight)
        value, left, right = self.spectral(unfolded.short)
        return value, unfolded.fold(left @ right)

    def add_gradients_(
        self, weights: Sequence[Tensor], totals: Sequence[Tensor], factor: float
    ) -> None:
        pairs = [
            (self._unfold(weight), self._unfold(total, weight))
            for weight, total in zip(weights, totals, strict=True)
        ]
        # A GPU does many small problems of one size together in the time of one; a CPU
        # gains nothing from that, but from several at once.
        if weights and weights[0].is_cuda:
            self._add_stacked_(pairs, factor)
        elif sum(one.work for one, _ in pairs) < _WORTH_THREADS:
            for one, total in pairs:
                self._add_(one, total, factor)
        else:
            pairs.sort(key=lambda pair: pair[0].work, reverse=True)
            side_by_side(self._add_, [(*pair, factor) for pair in pairs])

    def _add_(self, one: _Unfolded, total: _Unfolded, factor: float) -> None:
        _, left, right = self.spectral(one.short)
        total.add_product_(left, right, factor)

    def _add_stacked_(self, pairs: Sequence[tuple[_Unfolded, _Unfolded]], factor: float) -> None:
        """Solve matrices of equal shape together."""
        alike: dict[Any, list[tuple[_Unfolded, _Unfolded]]] = defaultdict(list)
        for pair in pairs:
            short = pair[0].short
            alike[short.shape, short.dtype, short.device].append(pair)
        for members in alike.values():
            _, lefts, rights = self.spectral(torch.stack([one.short for one, _ in members]))
            for (_, total), left, right in zip(members, lefts, rights, strict=True):
                total.add_product_(left, right, factor)

    def _unfold(self, weight: Tensor, like: Tensor | None = None) -> _Unfolded:
        if self.scheme not in SCHEMES:
            rule = "one of " + ", ".join(map(repr, SCHEMES))
            raise RegularizerValueError(type(self).__name__, "scheme", rule, self.scheme)
        return _Unfolded(weight, self.scheme, weight if like is None else like)


class _Unfolded:
    """A weight as a matrix with no more rows than columns, and the way back.

    like : Tensor of the same shape, whose order in memory that of the columns follows
    short : Tensor of shape (m, n), m <= n
    """

    def __init__(self, weight: Tensor, scheme: str, like: Tensor):
        self._weight = weight
        self._scheme = fitting(scheme, weight.shape)
        self._order = list(range(weight.dim()))
        if self._scheme == "output":
            # The order of columns does not matter to singular values, and to follow that
            # of the memory (channels last) saves copying the weight and the gradient.
            self._order[1:] = sorted(self._order[1:], key=like.stride, reverse=True)
        ordered = weight.permute(self._order)
        self._shape = ordered.shape
        matrix = unfold(ordered, self._scheme)
        self._tall = matrix.shape[0] > matrix.shape[1]
        self.short = short_side(matrix)

    @property
    def work(self) -> int:
        """How long its penalty takes, up to a factor: of the order of m^2 n."""
        m, n = self.short.shape
        return m * m * n

    def add_product_(self, left: Tensor, right: Tensor, factor: float) -> None:
        """Add `factor` times left @ right, of the shape of `short`, to the weight itself."""
        if self.short.untyped_storage().data_ptr() == self._weight.untyped_storage().data_ptr():
            self.short.addmm_(left, right, alpha=factor)
        else:  # unfolding has copied it
            self._weight.add_(self.fold(left @ right), alpha=factor)

    def fold(self, gradient: Tensor) -> Tensor:
        """Give a matrix (m, n) the shape of the weight."""
        folded = fold(gradient.mT if self._tall else gradient, self._scheme, self._shape)
        return folded.permute([self._order.index(a) for a in range(folded.dim())])
