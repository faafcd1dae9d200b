"""Log-determinant: a smooth, non-convex surrogate of rank."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ..errors import RegularizerValueError
from ..linalg import spectrum
from ..spaces import FloatRange, SearchSpace
from .spectral import Spectral


class LogDet(Spectral):
    """log det(I + W W^T / epsilon): the sum of log(1 + s^2 / epsilon) of singular values s.

    It pulls on small singular values more than on large ones, as rank itself would; the
    gradient is 2 (W W^T + epsilon I)^-1 W.

    weight : float >= 0
        Strength with which the penalty enters the loss.
    epsilon : float > 0
        In units of squared singular values: those well below it count as zero.
    scheme, every, layers, exclude
        As for :class:`~skcompress.NuclearNorm`.

    >>> round(float(LogDet(epsilon=1.0).penalty(torch.eye(2))), 4)
    1.3863

    Reference: Fazel, Hindi & Boyd 2003.
    """

    search_space: ClassVar[SearchSpace] = {"epsilon": FloatRange(1e-4, 1.0, log=True)}

    def __init__(
        self,
        weight: float = 1e-4,
        *,
        epsilon: float = 1e-2,
        scheme: str = "output",
        every: int = 1,
        layers: Any = None,
        exclude: Any = (),
    ):
        super().__init__(weight, scheme=scheme, every=every, layers=layers, exclude=exclude)
        self.epsilon = epsilon

    def spectral(self, short: Tensor) -> tuple[Tensor, Tensor]:
        if not self.epsilon > 0:
            raise RegularizerValueError("LogDet", "epsilon", "> 0", self.epsilon)
        found = spectrum(short)
        energies = found.values.square()
        value = (energies / self.epsilon).log1p().sum(-1)
        return value, found.apply(2 / (energies + self.epsilon))
