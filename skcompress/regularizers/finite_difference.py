"""Finite differences between neighbouring channels: how rough a weight is."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import ProximalError, RegularizerValueError
from ..spaces import Options, SearchSpace
from .closed_form import ClosedForm

# Axes of a weight (out, in, *kernel) by the name that users write.
_AXES = {"out": (0,), "in": (1,), "both": (0, 1)}


# Coefficients of a difference, by order.
_STENCILS = {1: (-1.0, 1.0), 2: (1.0, -2.0, 1.0)}
# Numbers of a weight that are worked on at a time on a CPU: what stays in its cache.
_CHUNK = 2**18


def differences(
    weight: Tensor, order: int, axes: tuple[int, ...], *, squared: bool
) -> tuple[Tensor, Tensor]:
    """Sum of squares, or of magnitudes, of differences along axes, and its gradient.

    With D the difference of `order` along an axis: |D W|^2 and 2 D^T D W, or |D W|_1 and
    D^T sign(D W), summed over the axes. An axis too short for a difference adds nothing.
    """
    value, gradient = weight.new_zeros(()), torch.zeros_like(weight)
    for axis in axes:
        length = weight.shape[axis] - order
        if length <= 0:
            continue
        for part, slope in _chunks(weight, gradient, 1 if axis == 0 else 0):
            rough = torch.zeros_like(part.narrow(axis, 0, length))
            for shift, factor in enumerate(_STENCILS[order]):
                rough.add_(part.narrow(axis, shift, length), alpha=factor)
            value += rough.square().sum() if squared else rough.abs().sum()
            outer = 2.0 if squared else 1.0
            rough = rough if squared else rough.sign_()
            for shift, factor in enumerate(_STENCILS[order]):
                slope.narrow(axis, shift, length).add_(rough, alpha=outer * factor)
    return value, gradient


def _chunks(weight: Tensor, gradient: Tensor, axis: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut both along `axis`: they are read and written several times, once from memory."""
    size = weight.shape[axis]
    if not weight.is_cuda:
        size = max(1, _CHUNK * size // max(1, weight.numel()))
    yield from zip(weight.split(size, axis), gradient.split(size, axis), strict=True)


def smooth(weight: Tensor, order: int, axes: tuple[int, ...], step: float) -> Tensor:
    """Solve (I + 2 step sum_axes D^T D) X = W: an implicit step, stable at any length.

    In the eigenvectors of D^T D along each axis the system is diagonal.
    """
    bases = {axis: _difference_modes(weight.shape[axis], order) for axis in axes}
    stiffness = weight.new_ones(())
    for axis, (values, vectors) in bases.items():
        shape = [-1 if a == axis else 1 for a in range(weight.dim())]
        stiffness = stiffness + 2 * step * values.to(weight).reshape(shape)
        weight = (weight.movedim(axis, -1) @ vectors.to(weight)).movedim(-1, axis)
    weight = weight / stiffness
    for axis, (_, vectors) in bases.items():
        weight = (weight.movedim(axis, -1) @ vectors.to(weight).mT).movedim(-1, axis)
    return weight


@lru_cache(maxsize=64)
def _difference_modes(length: int, order: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues (length,) and eigenvectors (length, length) of D^T D, in float64."""
    difference = torch.eye(length, dtype=torch.float64).diff(n=order, dim=0)
    values, vectors = torch.linalg.eigh(difference.mT @ difference)
    return values.clamp_(min=0), vectors


class FiniteDifference(ClosedForm):
    """Base of the difference penalties; `order` is the subclass's.

    Our reading of Runkel et al. 2025, arXiv 2505.24469, whose exact axes and powers we
    could not find. A network trained from scratch chooses its channel order under such a
    penalty; a trained one has none that means anything, and is smoothed across it all the
    same.
    """

    search_space: ClassVar[SearchSpace] = {
        "axes": Options(tuple(_AXES)),
        "kernel": Options((False, True)),
    }

    order: int

    def __init__(
        self,
        weight: float = 1e-4,
        *,
        axes: str = "both",
        kernel: bool = False,
        squared: bool = True,
        every: int = 1,
        layers: Any = None,
        exclude: Any = (),
    ):
        super().__init__(weight, every=every, layers=layers, exclude=exclude)
        self.axes = axes
        self.kernel = kernel
        self.squared = squared

    def evaluate(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return differences(weight, self.order, self._axes(weight), squared=self.squared)

    def prox(self, weight: Tensor, step: float) -> Tensor:
        if not self.squared:
            raise ProximalError(f"{type(self).__name__}(squared=False)")
        return smooth(weight, self.order, self._axes(weight), step)

    def _axes(self, weight: Tensor) -> tuple[int, ...]:
        if self.axes not in _AXES:
            rule = "'out', 'in' or 'both'"
            raise RegularizerValueError(type(self).__name__, "axes", rule, self.axes)
        return _AXES[self.axes] + (tuple(range(2, weight.dim())) if self.kernel else ())


class FirstDifference(FiniteDifference):
    """Squared differences between neighbouring channels, along outputs and inputs.

    Zero for weights that are the same in all channels. Our reading of the first-order
    penalty of Runkel et al. 2025, arXiv 2505.24469, whose exact axes and powers we could
    not find. A network trained from scratch chooses its channel order under it.

    weight : float >= 0
        Strength with which the penalty enters the loss.
    axes : {"both", "out", "in"}
        Along which channels.
    kernel : bool
        Along the axes of the kernel too.
    squared : bool
        Squares; False sums magnitudes (total variation), which allows single jumps.
    every, layers, exclude
        As for :class:`~skcompress.protocols.Regularizer`.

    >>> float(FirstDifference().penalty(torch.tensor([[0.0, 1.0], [2.0, 3.0]])))
    10.0
    """

    order = 1


class SecondDifference(FiniteDifference):
    """Squared second differences between channels, along outputs and inputs.

    Zero where channels change linearly. Our reading of the second-order penalty of
    Runkel et al. 2025, arXiv 2505.24469. Parameters as for :class:`FirstDifference`.

    >>> float(SecondDifference().penalty(torch.tensor([[0.0], [1.0], [4.0]])))
    4.0
    """

    order = 2
