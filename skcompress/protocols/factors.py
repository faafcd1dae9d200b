"""The tensors that stand for a weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor


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
        return prod(self.shape)


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
