"""A factor of which some rows or columns are those of an identity: only the others are stored.

`protocols.Pivots` says which. The channels that the identity would copy are copied; the layer
inside, an `nn.Linear` or a convolution without kernel, works on the rest.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ..protocols import Memo, Pivots
from ..protocols.product import whole


class PivotedFactor(nn.Module):
    """Stands for a larger layer without kernel; reading `weight` gives that layer's weight.

    layer : what is stored; without bias
    order : the channels along the axis that is left out in part, as in `Pivots`
    """

    axis = 0
    __jit_unused_properties__ = (
        "in_features", "kernel_size", "out_features", "pivots", "weight",
    )  # fmt: skip

    def __init__(self, layer: Any, order: Tensor, bias: nn.Parameter | None):
        super().__init__()
        self.layer = layer
        self.register_buffer("index", self._index(order))
        self.register_parameter("bias", bias)
        self.groups = getattr(layer, "groups", 1)
        # Counted from the end: a convolution's input may have no batch axis.
        self._dim = 1 - layer.weight.dim()
        self._of_bias = (-1, *(1,) * (-1 - self._dim))

    @staticmethod
    @abstractmethod
    def _index(order: Tensor) -> Tensor:
        """Give the channels in the order in which `forward` picks them; and the way back."""

    @property
    def pivots(self) -> Pivots:
        """What is left out of the layer inside."""
        return Pivots(self.axis, self._index(self.index))

    @property
    def weight(self) -> Tensor:
        return whole(self.layer.weight, self.groups, self.pivots)

    def to_plain(self, memo: Memo) -> nn.Module:
        """Give the larger layer, with the identity written out."""
        width = (self.in_features, self.out_features)
        has_bias = self.bias is not None
        plain: Any
        if isinstance(self.layer, nn.Linear):
            plain = nn.Linear(*width, bias=has_bias, device="meta")
        else:
            plain = type(self.layer)(
                *width, self.kernel_size, groups=self.groups, bias=has_bias, device="meta"
            )
        key = ("whole", id(self.layer.weight))  # factors that layers share stay one
        if key not in memo:
            trained = self.layer.weight.requires_grad
            memo[key] = nn.Parameter(self.weight.detach().clone(), requires_grad=trained)
        plain.weight, plain.bias = memo[key], deepcopy(self.bias, memo)
        return plain.train(self.training)

    @property
    def in_features(self) -> int:
        return len(self.index) if self.axis else self.layer.weight.shape[1] * self.groups

    @property
    def out_features(self) -> int:
        return self.layer.weight.shape[0] if self.axis else len(self.index)

    @property
    def kernel_size(self) -> tuple[int, ...]:
        return tuple(self.layer.weight.shape[2:])

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"

    def forward(self, input: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and input.is_nested:
            return _by_rows(self._combine, input)
        return self._combine(input)

    @abstractmethod
    def _combine(self, input: Tensor) -> Tensor:
        """Give the outputs for a tensor that is not nested."""

    def _add_bias(self, output: Tensor) -> Tensor:
        if self.bias is None:
            return output
        # Under autocast the product is of a lower precision, and so is an ordinary layer's sum.
        bias = self.bias.to(output.dtype)
        return output + bias.reshape(self._of_bias)


class PivotedRows(PivotedFactor):
    """Passes its inputs on as some of its outputs, and computes the others from them."""

    axis = 0

    @staticmethod
    def _index(order: Tensor) -> Tensor:
        return order.argsort()

    def _combine(self, input: Tensor) -> Tensor:
        joined = torch.cat([input, self.layer(input)], dim=self._dim)
        return self._add_bias(joined.index_select(self._dim, self.index))


class PivotedColumns(PivotedFactor):
    """Adds combinations of some of its inputs to the others."""

    axis = 1

    @staticmethod
    def _index(order: Tensor) -> Tensor:
        return order

    def _combine(self, input: Tensor) -> Tensor:
        n_pivots = self.layer.weight.shape[0]
        ordered = input.index_select(self._dim, self.index)
        pivots, others = ordered.split([n_pivots, len(self.index) - n_pivots], dim=self._dim)
        return self._add_bias(pivots + self.layer(others))


def _by_rows(function: Callable[[Tensor], Tensor], sequences: Tensor) -> Tensor:
    """Apply a function of rows to a nested tensor, as nn.TransformerEncoder makes of a padded one.

    torch can neither join nor pick the channels of these.
    """
    parts = sequences.unbind()
    rows = function(torch.cat([part.flatten(0, -2) for part in parts]))
    split = rows.split([part.shape[:-1].numel() for part in parts])
    shaped = [r.reshape(*p.shape[:-1], -1) for r, p in zip(split, parts, strict=True)]
    return torch.nested.as_nested_tensor(shaped, layout=sequences.layout)


def with_pivots(layer: nn.Module, pivots: Pivots, bias: nn.Parameter | None) -> PivotedFactor:
    """Complete a layer that holds what is stored of a factor."""
    cls = PivotedColumns if pivots.axis else PivotedRows
    return cls(layer, pivots.order, bias)
