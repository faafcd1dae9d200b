"""What a plugin must write, and the records that pass between the parts.

A plugin package subclasses one of `Decomposition`, `Allocation` or `SparsityAllocation`,
`Regularizer`, `Criterion` or `DataCriterion`, or `Compressor`, and names it in the entry-point
group of that kind. `docs/plugins.md` takes an author from an empty folder to a tested package.
What of its parameters is worth searching it says in a class attribute `search_space`, in the words
of `skcompress.spaces`.
"""

from __future__ import annotations

import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.utils import Tags
from torch import Tensor, nn

from .errors import InverseError, ProximalError
from .spaces import FloatRange, SearchSpace

Rank = int | tuple[int, ...]


@dataclass(frozen=True)
class Pivots:
    """What is not stored of a factor without kernel, because it is known.

    Some rows (or columns) of the factor, the pivots, are those of an identity matrix, and
    the factor's tensor holds the others only.

    axis : 0 where rows are left out, 1 where columns are
    order : int64 Tensor of all channels along this axis: the pivots, group by group and in
        the order of the identity, then the others, in the order of the tensor
    """

    axis: int
    order: Tensor


@dataclass(frozen=True)
class Sparse:
    """A weight that is zero but for some numbers, which alone are stored.

    values : Tensor of shape (n,)
    positions : int32 or int64 Tensor of shape (n,), where in the flattened weight they are,
        all different
    shape : (out, in / groups, *kernel) of the weight
    """

    values: Tensor
    positions: Tensor
    shape: tuple[int, ...]

    @classmethod
    def of(cls, weight: Tensor, kept: Tensor) -> Sparse:
        """Store the numbers of `weight` that `kept`, a bool tensor of its shape, marks."""
        positions, shape = kept.flatten().nonzero()[:, 0], tuple(weight.shape)
        return cls(weight.flatten()[positions], positions.to(cls.index_dtype(shape)), shape)

    @staticmethod
    def index_dtype(shape: Sequence[int]) -> torch.dtype:
        """Give the smaller of the two integers that can count the numbers of a weight."""
        return torch.int32 if prod(shape) < 2**31 else torch.int64

    @property
    def weight(self) -> Tensor:
        """All of the weight, with its zeros; differentiable in `values`."""
        zeros = self.values.new_zeros(prod(self.shape))
        return zeros.scatter(0, self.positions.long(), self.values).reshape(self.shape)


@dataclass(frozen=True)
class Stage:
    """Shape of one factor: a convolution kernel, or a matrix where there is no kernel.

    shape : (out, in / groups, *kernel), as `torch.nn.Conv2d.weight` has it, of what is stored
    pivots : the axis of its `Pivots`; None for a factor that is stored as it is
    sparse : for a `Sparse` term, which is added to the product of the factors, the shape of its
        weight; `shape` is (n,) then, of its values. None for a factor.
    """

    shape: tuple[int, ...]
    groups: int = 1
    pivots: int | None = None
    sparse: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """How many numbers the stage stores."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Factors:
    """A weight of shape (out, in, *kernel) as a chain of smaller ones, and what is added to it.

    `tensors[0]` is applied to the input first. Each is of shape
    (out_j, in_j / groups_j, *kernel_j); along every kernel axis at most one of them is
    longer than 1, so that stride, padding and dilation of that axis belong to it.
    `pivots`, empty or one for each of them, says of which a part is left out. `sparse`, of the
    whole weight's shape, is added to their product; None for nothing.
    """

    tensors: tuple[Tensor, ...]
    groups: tuple[int, ...]
    pivots: tuple[Pivots | None, ...] = ()
    sparse: Sparse | None = None

    @property
    def every_pivots(self) -> tuple[Pivots | None, ...]:
        """`pivots`, with None for each tensor where it is empty."""
        return self.pivots or (None,) * len(self.tensors)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The shapes alone, that of the sparse term last."""
        parts = zip(self.tensors, self.groups, self.every_pivots, strict=True)
        chain = tuple(Stage(tuple(t.shape), g, None if p is None else p.axis) for t, g, p in parts)
        if self.sparse is None:
            return chain
        return (*chain, Stage(tuple(self.sparse.values.shape), sparse=self.sparse.shape))

    @property
    def stored(self) -> tuple[Tensor, ...]:
        """Everything that holds numbers of the weight: one tensor for each of the stages."""
        return self.tensors if self.sparse is None else (*self.tensors, self.sparse.values)

    def holding(self, stored: Sequence[Tensor]) -> Factors:
        """Give the same with other tensors, of the same shapes, for those that are `stored`."""
        if self.sparse is None:
            return replace(self, tensors=tuple(stored))
        *tensors, values = stored
        return replace(self, tensors=tuple(tensors), sparse=replace(self.sparse, values=values))


@dataclass(frozen=True)
class Spectrum:
    """Singular values of one unfolding of a weight.

    values : float array of shape (k,), descending; (groups, k) for a grouped layer
    shape : (rows, columns) of the unfolding
    """

    values: np.ndarray
    shape: tuple[int, int]


@dataclass(frozen=True)
class Curve:
    """What a decomposition could do to one weight, at every rank that it offers.

    scheme : str
        Name of the way the weight is cut up, as the report shows it.
    ranks : int array of shape (n,), or (n, modes) where a rank is a tuple
    costs : int array of shape (n,)
        Stored numbers, ascending.
    errors : float array of shape (n,)
        Squared Frobenius norm, in the metric, of what is lost; where a rank is one
        number, never growing with it.
    total : float
        Squared norm of the whole weight in the same metric.
    full_rank : int or tuple
        The rank at which nothing is lost.
    spectra : tuple of Spectrum
        One for each number that a rank consists of; empty where there are none.
    """

    scheme: str
    ranks: np.ndarray
    costs: np.ndarray
    errors: np.ndarray
    total: float
    full_rank: Rank
    spectra: tuple[Spectrum, ...] = ()

    def rank_at(self, index: int) -> Rank:
        """Rank of option `index` as plain Python numbers."""
        value = self.ranks[index].tolist()
        return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Metric:
    """Second moments of what one weight is given and of what it is to give.

    A weight W (out, n) unfolded in the order of its memory, n = in * kernel, is to map
    inputs x (n,) to outputs y (out,). Means are taken off where a bias makes up for them.

    gram : float64 Tensor (n, n), E[x x^T]
    cross : float64 Tensor (out, n), E[y x^T]; W gram where y = W x
    energy : float, E[|R y|^2]
    output : float64 Tensor R, (out,) for its diagonal or (out, out), invertible; None for 1
        Errors e of the outputs count as |R e|^2: what is done with them afterwards.
    ridge : float > 0
        Share of the mean of gram's diagonal that is added to it, with as strong a pull to
        the weight: where inputs say little, the weight's own values are kept. More of it
        where moments of few inputs have to be relied on.
    noise : float >= 0
        What rounding may have left on gram's diagonal where nothing should be; the least that
        is added to it.
    """

    gram: Tensor
    cross: Tensor
    energy: float
    output: Tensor | None = None
    ridge: float = 1e-4
    noise: float = 0.0

    @classmethod
    def of_inputs(
        cls, weight: Tensor, gram: Tensor, output: Tensor | None = None, noise: float = 0.0
    ) -> Metric:
        """Metric in which `weight` itself is the goal, for inputs with this second moment."""
        matrix = weight.flatten(1).to(gram)
        cross = matrix @ gram
        metric = cls(gram, cross, 0.0, output, noise=noise)
        return replace(metric, energy=float((metric.seen(cross) * metric.seen(matrix)).sum()))

    def with_ridge(self, weight: Tensor) -> Metric:
        """Add a little of what `weight` would give on white inputs.

        A regression then shrinks to the weight, not to zero, where inputs say nothing; the gram
        becomes positive definite.
        """
        size = self.ridge * float(self.gram.diagonal().mean())
        size = max(size, self.noise) or self.ridge
        matrix = weight.flatten(1).to(self.gram)
        white = torch.eye(len(self.gram), dtype=matrix.dtype, device=matrix.device)
        return replace(
            self,
            gram=self.gram + size * white,
            cross=self.cross + size * matrix,
            energy=self.energy + size * float(self.seen(matrix).square().sum()),
        )

    def less(self, weight: Tensor) -> Metric:
        """Metric of what is left to be given, y - weight x, once `weight` gives its part."""
        matrix = weight.flatten(1).to(self.gram)
        given = matrix @ self.gram
        twice = self.seen(2 * self.cross - given)
        energy = self.energy - float((twice * self.seen(matrix)).sum())
        return replace(self, cross=self.cross - given, energy=energy)

    def seen(self, outputs: Tensor) -> Tensor:
        """Give R outputs, for outputs (out, any)."""
        if self.output is None:
            return outputs
        return self.output[:, None] * outputs if self.output.dim() == 1 else self.output @ outputs

    def weighed(self, outputs: Tensor) -> Tensor:
        """Give R^T R outputs, for outputs (out, any)."""
        if self.output is None:
            return outputs
        if self.output.dim() == 1:
            return self.output.square()[:, None] * outputs
        return self.output.mT @ (self.output @ outputs)

    def unseen(self, outputs: Tensor) -> Tensor:
        """Give R^-1 outputs, for outputs (out, any)."""
        if self.output is None:
            return outputs
        if self.output.dim() == 1:
            return outputs / self.output[:, None]
        return torch.linalg.solve(self.output, outputs)


class Factorization(ABC):
    """One weight after its expensive step: every rank is cheap from here.

    The weight itself is not kept, so that many of these fit in memory at once; it is
    handed in again when factors are wanted.
    """

    curve: Curve

    @abstractmethod
    def factors(self, weight: Tensor, rank: Rank) -> Factors:
        """Give the factors of `weight`, the tensor that was factorised, at `rank`."""

    @abstractmethod
    def trim(self, rank: Rank) -> Factorization:
        """Give what is needed at `rank`, and nothing else; this one stays as it is."""


class Decomposition(BaseEstimator, ABC):
    """Cuts a weight of shape (out, in, *kernel) into a chain of smaller ones.

    A sparse term may be added to their product; `adds_sparse` says so beforehand.

    It sees tensors, never modules: groups, tied weights, half precision and the layers
    that hold the factors are the caller's business. `weight` is a finite floating
    tensor without gradient in float32 or float64 on any device, possibly non-contiguous.
    A subclass with randomness takes a `random_state` parameter.
    """

    search_space: ClassVar[SearchSpace] = {}

    @property
    def scheme(self) -> str:
        """Short name that the report shows."""
        return type(self).__name__.lower()

    @property
    def adds_sparse(self) -> bool:
        """Whether its factors have a sparse term, which not every kind of layer takes."""
        return False

    def unsupported(self, shape: Sequence[int]) -> str | None:
        """Say why a weight of this shape cannot be cut up this way; None if it can."""
        return None

    @abstractmethod
    def factorize(self, weight: Tensor) -> Factorization:
        """Do the expensive step for `weight` once, for all ranks."""

    def regress(self, weight: Tensor, metric: Metric) -> Factorization:
        """Do the expensive step for what `weight` gives on its inputs, instead of for itself.

        Errors of the curve are then mean squared errors of the outputs. A decomposition
        that does not write this has its last factor fitted to the outputs, where that is
        pointwise, and otherwise takes no part where there is data.
        """
        raise NotImplementedError

    def regress_at(self, weight: Tensor, metric: Metric, rank: Rank) -> Factorization:
        """`regress` for one rank alone. To be written where that is much cheaper."""
        return self.regress(weight, metric).trim(rank)

    @abstractmethod
    def stages(self, shape: Sequence[int], rank: Rank) -> tuple[Stage, ...]:
        """Shapes of the factors of a weight of `shape` at `rank`, without computing them.

        One for each of `Factors.stored`, in that order.
        """


@dataclass(frozen=True)
class Layer:
    """One weight as an allocation sees it.

    Costs are stored numbers, or FLOPs where the budget is one of FLOPs.

    dense : int
        Cost when it is left as it is, at no error.
    curves : tuple of Curve
        One for each way of cutting it up; they compete.
    importance : float
        How much its relative error counts, against those of the other layers.
    """

    name: str
    dense: int
    curves: tuple[Curve, ...]
    importance: float = 1.0


@dataclass(frozen=True)
class Choice:
    """Option `option` of curve `curve` of a layer. "Dense" is None instead of a choice."""

    curve: int
    option: int


class Allocation(BaseEstimator, ABC):
    """Divides a budget over the layers. It sees numbers only."""

    search_space: ClassVar[SearchSpace] = {}

    @abstractmethod
    def allocate(self, layers: Sequence[Layer], rank: float, n_fixed: int) -> list[Choice | None]:
        """Choose for every layer one option, or None to leave it dense.

        rank : the user's number in (0, 1]; what it is a fraction of is the allocation's
            to say.
        n_fixed : cost outside `layers` that counts towards a budget of the model.

        A number that cannot be reached is a `skcompress.errors.BudgetError`. A choice
        never costs more than `dense`.
        """


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

    # Which tensors of a model are weights is knowledge of `selection`, which is built on
    # this file: hence the deferred imports.

    def __call__(self, model: nn.Module) -> Tensor:
        """Give the scalar to add to the loss: `weight` times the sum over the model's weights."""
        from .penalties import weighted_penalty

        return weighted_penalty(self, model)

    def add_grad_(self, model: nn.Module, scale: float = 1.0) -> None:
        """Add the penalty's gradient to `.grad` of the model's parameters, without a graph.

        To be called once before each `optimizer.step()`: after the last `backward()`
        where gradients are accumulated, after `GradScaler.unscale_`, and in every process
        of a DistributedDataParallel model. `scale` multiplies the gradient.
        """
        from .penalties import add_gradients

        add_gradients(self, model, scale)

    def prox_(self, model: nn.Module, step: float) -> None:
        """Replace the model's weights by their proximal points, after `optimizer.step()`.

        step : usually the learning rate; `weight` multiplies it
        """
        from .penalties import apply_prox

        apply_prox(self, model, step)

    def __add__(self, other: Regularizer) -> Regularizer:
        """Both penalties, each with its own strength."""
        from .regularizers.sum import SumRegularizer

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
        # What `penalties` remembers of the models it met is no part of the penalty.
        return {k: v for k, v in super().__getstate__().items() if k != "_met"}


class Compressor(TransformerMixin, BaseEstimator, ABC):
    """An estimator whose X is a `torch.nn.Module` and which gives back a smaller one.

    The model that is passed in stays as it was, whatever happens. `plan_` and `report_`
    are learnt by `fit`; `data`, where a compressor uses it, is the second positional
    argument, so that `Pipeline.fit_transform(model, data)` hands it on.
    """

    search_space: ClassVar[SearchSpace] = {}

    # Results in common with other fits, as `compressors.sharing.share` sets it.
    _shared: Any = None

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_shared"}

    @abstractmethod
    def fit(self, model: nn.Module, data: object = None) -> Compressor:
        """Learn what to do with each layer of `model`."""

    @abstractmethod
    def transform(self, model: nn.Module) -> nn.Module:
        """Give a new, smaller model; `model` may be another one of the same architecture."""

    def fit_transform(self, model: nn.Module, data: object = None) -> nn.Module:  # type: ignore[override]
        """`fit` and `transform` of the same model."""
        return self.fit(model, data).transform(model)

    def inverse_transform(self, model: nn.Module) -> nn.Module:
        """Give back a model of ordinary layers with the same function, where that exists."""
        raise InverseError(type(self).__name__)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        # X is a module, not a table.
        tags.input_tags.two_d_array = False
        tags.no_validation = True
        return tags


class Criterion(BaseEstimator, ABC):
    """Says how much each single number of a weight matters; used by pruners.

    It sees tensors, never modules. `weight` is a finite float32 or float64 tensor without
    gradient, possibly non-contiguous, and is never changed. A subclass with randomness takes a
    `random_state` parameter.
    """

    search_space: ClassVar[SearchSpace] = {}

    @abstractmethod
    def scores(self, weight: Tensor) -> Tensor:
        """Give non-negative importances of the shape of `weight`, (out, in, *kernel).

        The least go first; under a budget of the whole model, those of all weights compete.
        """


@dataclass(frozen=True)
class Evidence:
    """What calibration data says of one weight (out, in, *kernel), n = in * kernel.

    Only what a criterion asks for by `needs` is there; the rest is None.

    gram : float64 Tensor (n, n), E[x x^T] of the inputs that the weight is applied to, in the
        order of its memory; None for an embedding, which is looked up
    lookups : Tensor (out,), with "gram": the mean number of times that a position of the data
        looks up each row of an embedding; None for a weight that is multiplied with inputs
    gradient : Tensor of the weight's shape, E[dl/dw], where l is the log-likelihood of the
        class that the network finds most probable, or half the squared norm of other outputs
    fisher : Tensor of the weight's shape, E[(dl/dw)^2] for outputs drawn from the network's own
        distribution: the diagonal of the Fisher information
    relevance, positive_relevance : Tensors of the weight's shape, E[R], how much of the network's
        output for the most probable class comes through each number of the weight, by the rules
        "epsilon" and "positive" of `calibration.relevance`
    """

    gram: Tensor | None = None
    lookups: Tensor | None = None
    gradient: Tensor | None = None
    fisher: Tensor | None = None
    relevance: Tensor | None = None
    positive_relevance: Tensor | None = None

    def input_power(self, weight: Tensor) -> Tensor:
        """Give E[x^2] of what each number of `weight` is multiplied with, to be broadcast to it."""
        if self.gram is None:
            assert self.lookups is not None
            return self.lookups.to(weight).reshape(-1, *(1,) * (weight.dim() - 1))
        return self.gram.diagonal().clamp(min=0).to(weight).reshape(weight.shape[1:])


class DataCriterion(BaseEstimator, ABC):
    """Says how much each single number of a weight matters, from what data says of it.

    needs : fields of `Evidence`: "gram", "gradient", "fisher", "relevance", "positive_relevance"
    """

    @property
    @abstractmethod
    def needs(self) -> tuple[str, ...]:
        """Names of the fields that `scores` and `updated` read."""

    @abstractmethod
    def scores(self, weight: Tensor, evidence: Evidence) -> Tensor:
        """Give non-negative importances of the shape of `weight`, (out, in, *kernel)."""

    def updated(self, weight: Tensor, evidence: Evidence, kept: Tensor) -> Tensor:
        """Give the pruned weight: zero but where `kept` (of its shape, bool) is True.

        Rewritten by criteria that change what is kept, to make up for what goes.
        """
        return weight * kept


@dataclass(frozen=True)
class Prunable:
    """One weight as an allocation of zeros sees it.

    shape : (groups, out, in, *kernel)
    least : how many of its numbers have to stay
    scores : gives the criterion's importances, of this shape; the same ones at every call
    weight : gives the values, of this shape
    distortion : gives, for numbers of values kept, what the outputs of the network lose when the
        others become zero, to second order; None unless asked for by `needs` with data
    """

    name: str
    shape: tuple[int, ...]
    least: int
    scores: Callable[[], Tensor]
    weight: Callable[[], Tensor]
    distortion: Callable[[Sequence[int]], Sequence[float]] | None = None

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return int(np.prod(self.shape, dtype=np.int64))


class SparsityAllocation(BaseEstimator, ABC):
    """Divides a number of values that stay over the weights of a model.

    needs : ("distortion",) where it uses that, which takes data
    """

    needs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def divide(self, weights: Sequence[Prunable], n_kept: int) -> list[int]:
        """Say how many values of each weight stay: from its `least` to its `size`.

        n_kept : what they add up to, no less than all `least` and no more than all `size`
        """
