"""A chain of layers and a sparse term: what both give for the same input is added.

The term is a layer without bias, most of whose weight is zero. Its values are stored, as a
parameter, and where they belong, as a buffer; at each call they are put in their places and
multiplied as any dense weight is: it saves numbers, not time. torch's products with sparse tensors
would be quicker for a linear layer on a CPU, but there are none for convolutions, and not all
devices and precisions have them.

To form the whole weight first, factors and all, would take out * rank * in multiplications at every
call, instead of rank * (out + in) at every position. In large batches that is less (it took down to
0.55 of the time), in small ones five times as much; and the factors would be no layers that are
called, for pruners and other tools to work on.
"""

from __future__ import annotations

from copy import deepcopy
from math import prod
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..protocols import Factorized, Factors, Memo, Pivots, Sparse
from .pivot import PivotedFactor


class SparseTerm(nn.Module):
    """A linear layer without bias that stores only some numbers of its weight.

    values : the parameter (n,); positions : where they are in the flattened weight
    shape : (out, in / groups, *kernel) of the weight
    """

    __jit_unused_properties__ = ("sparse", "weight")

    def __init__(self, sparse: Sparse):
        super().__init__()
        self.values = sparse.values
        self.register_buffer("positions", sparse.positions)
        self.shape = sparse.shape
        self.size = prod(sparse.shape)

    @property
    def sparse(self) -> Sparse:
        """The values and where they belong."""
        return Sparse(self.values, self.positions, self.shape)

    @property
    def weight(self) -> Tensor:
        return self._placed()

    def _placed(self) -> Tensor:
        """Put the values in their places."""
        zeros = self.values.new_zeros(self.size)
        return zeros.scatter(0, self.positions.long(), self.values).reshape(self.shape)

    def extra_repr(self) -> str:
        return f"{len(self.values)} values in {tuple(self.shape)}"

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self._placed())


class LayerChain(nn.Sequential, Factorized):
    """Layers one after another, the last with the bias, in place of one.

    A child of the name `sparse`, which is none of them, is given what the first is given.
    """

    @property
    def links(self) -> tuple[Any, ...]:
        """The layers that come one after another."""
        return tuple(module for name, module in self._modules.items() if name != "sparse")

    @property
    def term(self) -> SparseTerm | None:
        """What is added to what they give; None for nothing."""
        return self._modules.get("sparse")  # type: ignore[return-value]

    @property
    def bias(self) -> nn.Parameter | None:
        return self.links[-1].bias

    def factors(self) -> dict[str, Factors]:
        tensors, groups, pivots = zip(*map(self._factor, self.links), strict=True)
        term = None if self.term is None else self.term.sparse
        return {"": Factors(tensors, groups, pivots if any(pivots) else (), term)}

    def to_plain(self, memo: Memo) -> nn.Module | str:
        if self.term is not None:
            return "factors with a sparse term, which no layer of torch.nn adds"
        return nn.Sequential(
            *(
                link.to_plain(memo) if isinstance(link, PivotedFactor) else deepcopy(link, memo)
                for link in self.links
            )
        )

    @staticmethod
    def _factor(link: Any) -> tuple[Tensor, int, Pivots | None]:
        """Give what one of the layers stores, as (out, in / groups, *kernel)."""
        if isinstance(link, PivotedFactor):
            return link.layer.weight, link.groups, link.pivots
        return link.weight, getattr(link, "groups", 1), None

    def forward(self, input: Tensor) -> Tensor:
        return self._chained(input)

    def _chained(self, input: Tensor) -> Tensor:
        output = input
        terms: list[Tensor] = []
        for name, layer in self.named_children():
            if name == "sparse":
                terms.append(layer(input))
            else:
                output = layer(output)
        return output + terms[0] if terms else output
