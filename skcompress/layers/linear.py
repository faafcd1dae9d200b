"""Linear layers, and the Conv1D of transformers, as two or more thinner ones."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..protocols import Factors, Inputs, LayerKind, Memo, Pivots, Slot, rows
from ..protocols.product import multiply_out
from .pivot import with_pivots
from .reparametrized import storage_refusal, weight_parameters, weight_reader
from .sparse import LayerChain, SparseTerm
from .taking_over import dense_copy, overrides


def linear(weight: nn.Parameter, bias: nn.Parameter | None = None) -> nn.Linear:
    """Make an `nn.Linear` around existing parameters, drawing no random numbers."""
    out, inputs = weight.shape
    layer = nn.Linear(inputs, out, bias=bias is not None, device="meta")
    layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
    return layer


class FactorizedLinear(LayerChain):
    """A chain of `nn.Linear`s in place of one; the last holds the bias.

    Reading `weight` multiplies the factors out: (out_features, in_features), not a
    parameter.
    """

    kind = "linear"

    @classmethod
    def from_factors(cls, factors: Factors, bias: nn.Parameter | None) -> FactorizedLinear:
        """Build from parameters of shapes (r, in), ..., (out, r)."""
        biases = (None,) * (len(factors.tensors) - 1) + (bias,)
        parts = zip(factors.tensors, factors.every_pivots, biases, strict=True)
        layer = cls(*(_stage(*part) for part in parts))  # type: ignore[arg-type]
        if factors.sparse is not None:
            layer.add_module("sparse", SparseTerm(factors.sparse))
        return layer

    @property
    def in_features(self) -> int:
        return self.links[0].in_features

    @property
    def out_features(self) -> int:
        return self.links[-1].out_features

    @property
    def weight(self) -> Tensor:
        return multiply_out(self.factors()[""])

    def to_dense(self, memo: Memo) -> nn.Module:
        weight = dense_weight(self, stored_factors(self), memo)
        return linear(weight, dense_copy(self.bias, memo))


def _stage(weight: nn.Parameter, pivots: Pivots | None, bias: nn.Parameter | None) -> nn.Module:
    if pivots is None:
        return linear(weight, bias)
    return with_pivots(linear(weight), pivots, bias)


def stored_factors(chain: nn.Module) -> tuple[nn.Parameter, ...]:
    """Parameters of a chain of layers, without their biases."""
    named = chain.named_parameters()
    return tuple(p for name, p in named if name.rpartition(".")[2] != "bias")


def dense_weight(module: nn.Module, stages: tuple[Tensor, ...], memo: Memo) -> nn.Parameter:
    """Multiply out a weight once for all layers that share its factors."""
    # An embedding and its tied output head apply the same factors in opposite order.
    key = frozenset(map(id, stages))
    if key not in memo:
        with torch.no_grad():
            product = module.weight.detach().clone(memory_format=torch.contiguous_format)
        memo[key] = nn.Parameter(product, requires_grad=any(s.requires_grad for s in stages))
    return memo[key]  # type: ignore[return-value]


class LinearKind(LayerKind):
    """`torch.nn.Linear` and subclasses that keep its forward."""

    types = (nn.Linear,)
    takes_pivots = True
    takes_sparse = True

    def refusal(self, module: nn.Module) -> str | None:
        return overrides(module, nn.Linear) or storage_refusal(module)

    def slots(self, module: nn.Module) -> list[Slot]:
        read = weight_reader(module)
        return [Slot("", 1, lambda: read()[None], weight_parameters(module))]

    def build(self, module: nn.Module, factors: Mapping[str, Factors], memo: Memo) -> nn.Module:
        return FactorizedLinear.from_factors(factors[""], dense_copy(module.bias, memo))

    def inputs(
        self, module: nn.Module, wanted: Collection[str], call: Mapping[str, Any]
    ) -> Iterator[tuple[str, Inputs]]:
        yield "", rows(call["input"])

    def outputs(self, module: nn.Module, output: Tensor) -> dict[str, Inputs]:
        return {"": rows(output)}


class FactorizedConv1D(FactorizedLinear):
    """In place of `transformers.pytorch_utils.Conv1D`, whose weight is (in, out)."""

    kind = "conv1d"

    @property
    def nx(self) -> int:
        return self.in_features

    @property
    def nf(self) -> int:
        return self.out_features

    @property
    def weight(self) -> Tensor:
        return super().weight.mT

    def forward(self, x: Tensor) -> Tensor:  # its argument's name is the original's
        return self._chained(x)

    def to_dense(self, memo: Memo) -> nn.Module:
        from transformers.pytorch_utils import Conv1D

        with torch.device("meta"):
            layer = Conv1D(self.nf, self.nx)
        layer.weight = dense_weight(self, stored_factors(self), memo)
        layer.bias = dense_copy(self.bias, memo)
        return layer


class Conv1DKind(LayerKind):
    """The Conv1D of transformers (GPT-2): a linear layer with a transposed weight."""

    takes_pivots = True
    takes_sparse = True

    @property
    def types(self) -> tuple[type[nn.Module], ...]:  # type: ignore[override]
        # Where transformers was never imported, no module can be one of its layers.
        cls = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
        return () if cls is None else (cls,)

    def refusal(self, module: nn.Module) -> str | None:
        return overrides(module, self.types[0]) or storage_refusal(module)

    def slots(self, module: nn.Module) -> list[Slot]:
        read = weight_reader(module)
        parameters = weight_parameters(module)
        return [Slot("", 1, lambda: read().mT[None], parameters, tieable=False)]

    def build(self, module: nn.Module, factors: Mapping[str, Factors], memo: Memo) -> nn.Module:
        return FactorizedConv1D.from_factors(factors[""], dense_copy(module.bias, memo))

    def inputs(
        self, module: nn.Module, wanted: Collection[str], call: Mapping[str, Any]
    ) -> Iterator[tuple[str, Inputs]]:
        yield "", rows(call["x"])

    def outputs(self, module: nn.Module, output: Tensor) -> dict[str, Inputs]:
        return {"": rows(output)}
