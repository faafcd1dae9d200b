"""Penalties on weights, for training."""

from __future__ import annotations

import numbers
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from sklearn.base import BaseEstimator, clone
from torch import Tensor, nn

from ..errors import ProximalError
from ..spaces import FloatRange, SearchSpace
from .modelwise import modelwise


class Regularizer(BaseEstimator, ABC):
    """A penalty on weights that is added to the loss while training.

    A plugin writes `penalty`. With `gradient` in closed form `add_grad_` needs no graph;
    with `prox` there are proximal steps. A constructor of its own must keep the `weight`
    parameter; the others are class attributes too, so that it need not repeat them.

    weight : float >= 0
        Strength with which the penalty enters the loss.
    every : int >= 1
        Take part in the first of every so many calls only, with the strength times as
        much: the same pull on average, for a fraction of the time. Each model and each
        of the three ways of calling is counted for itself.
    layers, exclude : names, glob patterns or module types
        Which layers of a model, as for the compressors. Frozen weights take no part,
        shared ones take part once, each group of a grouped layer counts for itself.
    """

    search_space: ClassVar[SearchSpace] = {"weight": FloatRange(1e-5, 1e-1, log=True)}

    every: int = 1
    layers: Any = None
    exclude: Any = ()

    def __init__(
        self, weight: float = 1e-4, *, every: int = 1, layers: Any = None, exclude: Any = ()
    ):
        self.weight = weight
        self.every = every
        self.layers = layers
        self.exclude = exclude

    @abstractmethod
    def penalty(self, weight: Tensor) -> Tensor:
        """Give a non-negative differentiable scalar for a weight (out, in, *kernel)."""

    def gradient(self, weight: Tensor) -> Tensor:
        """Give the gradient of `penalty` at a weight, of its shape, without a graph."""
        with torch.enable_grad():
            leaf = weight.detach().requires_grad_()
            value = self.penalty(leaf)
            if not value.requires_grad:
                return torch.zeros_like(leaf)
            (gradient,) = torch.autograd.grad(value, leaf)
        return gradient

    def add_gradients_(
        self, weights: Sequence[Tensor], totals: Sequence[Tensor], factor: float
    ) -> None:
        """Add `factor` times the `gradient` of each weight to its total, a tensor alike.

        Rewritten where many weights at once, or adding while computing, are cheaper.
        """
        for weight, total in zip(weights, totals, strict=True):
            total.add_(self.gradient(weight), alpha=factor)

    def prox(self, weight: Tensor, step: float) -> Tensor:
        """Give the proximal point of a weight: argmin_x step * penalty(x) + |x - weight|^2 / 2.

        step : float > 0, what the penalty is multiplied by
        """
        raise ProximalError(type(self).__name__)

    @property
    def summands(self) -> Sequence[Regularizer]:
        """The penalties that this one is the sum of: itself, unless it is a `SumRegularizer`."""
        return (self,)

    def __call__(self, model: nn.Module) -> Tensor:
        """Give the scalar to add to the loss: `weight` times the sum over the model's weights."""
        return modelwise().penalty(self, model)

    def add_grad_(self, model: nn.Module, scale: float = 1.0) -> None:
        """Add the penalty's gradient to `.grad` of the model's parameters, without a graph.

        To be called once before each `optimizer.step()`: after the last `backward()`
        where gradients are accumulated, after `GradScaler.unscale_`, and in every process
        of a DistributedDataParallel model. `scale` multiplies the gradient.
        """
        modelwise().add_gradients_(self, model, scale)

    def prox_(self, model: nn.Module, step: float) -> None:
        """Replace the model's weights by their proximal points, after `optimizer.step()`.

        step : usually the learning rate; `weight` multiplies it
        """
        modelwise().prox_(self, model, step)

    def __add__(self, other: Regularizer) -> Regularizer:
        """Both penalties, each with its own strength."""
        if not isinstance(other, Regularizer):
            return NotImplemented
        return SumRegularizer((self, other))

    def __mul__(self, factor: float) -> Regularizer:
        """Give the same penalty, `factor` times as strong."""
        if not isinstance(factor, numbers.Real):
            return NotImplemented
        return clone(self).set_params(weight=self.weight * factor)

    __rmul__ = __mul__

    def __getstate__(self) -> dict[str, Any]:
        # Which weights take part in it, and whose turn it is, is no part of the penalty.
        return {k: v for k, v in super().__getstate__().items() if k != "_participations"}


class SumRegularizer(Regularizer):
    """Sum of penalties, each with its own strength, layers and rhythm; what `a + b` gives.

    regularizers : the summands
    weight : float, multiplies the strengths of all of them

    >>> from skcompress import FirstDifference, NuclearNorm
    >>> both = NuclearNorm(1e-3, every=4) + FirstDifference(1e-2)
    >>> half = 0.5 * both
    >>> half.weight
    0.5
    """

    def __init__(self, regularizers: tuple[Regularizer, ...], weight: float = 1.0):
        super().__init__(weight)
        self.regularizers = regularizers

    def penalty(self, weight: Tensor) -> Tensor:
        penalties = [r.weight * r.penalty(weight) for r in self.regularizers]
        return torch.stack(penalties).sum()

    @property
    def summands(self) -> Sequence[Regularizer]:
        return self.regularizers
