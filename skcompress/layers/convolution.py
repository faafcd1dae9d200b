"""Convolutions and transposed convolutions as chains of smaller ones."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..protocols import Factors, Inputs, LayerKind, Memo, Pivots, Slot, Sparse
from ..protocols.product import multiply_out
from .linear import dense_weight, stored_factors
from .patches import patches, pixels, transposed_patches
from .pivot import PivotedFactor, with_pivots
from .reparametrized import storage_refusal, weight_parameters, weight_reader
from .sparse import LayerChain, SparseTerm
from .taking_over import dense_copy, overrides

_CONV: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, type[nn.Module]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
# Per kernel axis, and what a stage has along the axes that are not its own.
_PER_AXIS = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0}


def _swap_channels(weight: Tensor, groups: int) -> Tensor:
    """Exchange the channel axes within each group: (g a, b, *k) to (g b, a, *k)."""
    per_group = weight.unflatten(0, (groups, -1))
    return per_group.transpose(1, 2).flatten(0, 1)


def _settings(conv: Any) -> dict[str, Any]:
    names = ("stride", "padding", "dilation", "groups", "padding_mode")
    more = ("output_padding",) if conv.transposed else ()
    return {name: getattr(conv, name) for name in names + more}


def _make(
    transposed: bool,
    weight: nn.Parameter,
    bias: nn.Parameter | None,
    kernel: Sequence[int],
    settings: Mapping[str, Any],
) -> nn.Module:
    """Make a convolution around existing parameters, drawing no random numbers."""
    cls = (_TRANSPOSED if transposed else _CONV)[len(kernel)]
    channels = [weight.shape[1] * settings["groups"], weight.shape[0]]
    if transposed:
        channels.reverse()
    layer = cls(*channels, tuple(kernel), bias=bias is not None, device="meta", **settings)
    layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
    return layer


class SparseConv(SparseTerm):
    """A convolution without bias that stores only some numbers of its weight.

    A transposed one stores them by their positions in (out, in / groups, *kernel), as the others.
    """

    def __init__(self, sparse: Sparse, conv: Any):
        super().__init__(sparse)
        names = ("in_channels", "out_channels", "kernel_size", "transposed", "output_padding")
        # torch's own list of what is added before and after each axis, "same" included.
        for name in (*names, *_settings(conv), "_reversed_padding_repeated_twice"):
            setattr(self, name, getattr(conv, name))

    @property
    def weight(self) -> Tensor:
        weight = self.sparse.weight
        return _swap_channels(weight, self.groups) if self.transposed else weight

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        n_axes = len(self.kernel_size)
        if not self.transposed:
            return _CONV[n_axes]._conv_forward(self, input, self.weight, None)  # type: ignore[attr-defined]
        extra = _TRANSPOSED[n_axes]._output_padding(  # type: ignore[attr-defined]
            self, input, output_size, self.stride, self.padding, self.kernel_size, n_axes,
            self.dilation,
        )  # fmt: skip
        apply = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[n_axes - 1]
        return apply(
            input, self.weight, None, self.stride, self.padding, extra, self.groups, self.dilation
        )


class FactorizedConv(LayerChain):
    """A chain of `nn.Conv*d` or `nn.ConvTranspose*d` in place of one.

    Each kernel axis belongs to the stage that is longer than 1 along it, with stride,
    padding and dilation of that axis; the last stage holds the bias. Reading `weight`
    multiplies the factors out to the shape that the original had.
    """

    kind = "convolution"

    @classmethod
    def from_factors(cls, conv: Any, factors: Factors, bias: nn.Parameter | None) -> FactorizedConv:
        """Build from parameters (out_j, in_j / groups_j, *kernel_j) in place of `conv`.

        Where `conv` is transposed, so is each factor's pair of channel axes.
        """
        settings = _settings(conv)
        parts = list(zip(factors.tensors, factors.groups, factors.every_pivots, strict=True))
        owners = _axis_owners([None if p else weight.shape[2:] for weight, _, p in parts])
        stages = []
        for j, (weight, groups, pivots) in enumerate(parts):
            own_bias = bias if j == len(parts) - 1 else None
            if pivots is not None:
                # Without a kernel a transposed convolution is an ordinary one.
                mix = _make(False, weight, None, weight.shape[2:], {"groups": groups})  # type: ignore[arg-type]
                stages.append(with_pivots(mix, pivots, own_bias))
                continue
            own = dict(settings, groups=groups)
            for name, neutral in _PER_AXIS.items():
                if isinstance(settings.get(name), tuple):
                    own[name] = tuple(
                        value if owners[axis] == j else neutral
                        for axis, value in enumerate(settings[name])
                    )
            stages.append(_make(conv.transposed, weight, own_bias, weight.shape[2:], own))  # type: ignore[arg-type]
        layer = cls(*stages)
        if factors.sparse is not None:
            layer.add_module("sparse", SparseConv(factors.sparse, conv))
        for name in ("in_channels", "out_channels", "kernel_size", "transposed", *settings):
            setattr(layer, name, getattr(conv, name))
        return layer

    @property
    def weight(self) -> Tensor:
        product = multiply_out(self.factors()[""], self.groups)
        return _swap_channels(product, self.groups) if self.transposed else product

    @staticmethod
    def _factor(link: Any) -> tuple[Tensor, int, Pivots | None]:
        weight, groups, pivots = LayerChain._factor(link)
        swapped = pivots is None and link.transposed
        return _swap_channels(weight, groups) if swapped else weight, groups, pivots

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if not torch.jit.is_scripting() and output_size is not None:
            return self._of_size(input, output_size)
        return self._chained(input)

    def _of_size(self, input: Tensor, output_size: Sequence[int]) -> Tensor:
        n_axes = len(self.kernel_size)
        target = list(output_size)[-n_axes:]
        pivoted = [isinstance(stage, PivotedFactor) for stage in self.links]
        owners = _axis_owners(
            [None if p else s.kernel_size for s, p in zip(self.links, pivoted, strict=True)]
        )
        output = input
        for j, stage in enumerate(self.links):
            if pivoted[j]:
                output = stage(output)
                continue
            before = output.shape[-n_axes:]
            size = [
                t if owner == j else n for t, owner, n in zip(target, owners, before, strict=True)
            ]
            output = stage(output, size)
        return output if self.term is None else output + self.term(input, target)

    def to_dense(self, memo: Memo) -> nn.Module:
        weight = dense_weight(self, stored_factors(self), memo)
        bias = dense_copy(self.bias, memo)
        return _make(self.transposed, weight, bias, self.kernel_size, _settings(self))


def _axis_owners(kernels: Sequence[Sequence[int] | None]) -> tuple[int, ...]:
    """Which stage has stride and padding of each kernel axis: the longest, else the first.

    kernels : None for a stage that can have neither
    """
    able = {j: kernel for j, kernel in enumerate(kernels) if kernel is not None}
    n_axes = len(next(iter(able.values())))
    return tuple(max(able, key=lambda j: able[j][axis]) for axis in range(n_axes))


class ConvKind(LayerKind):
    """`torch.nn.Conv1d`, `Conv2d`, `Conv3d` and their transposed forms."""

    types = (*_CONV.values(), *_TRANSPOSED.values())
    takes_pivots = True
    takes_sparse = True

    def refusal(self, module: Any) -> str | None:
        table = _TRANSPOSED if module.transposed else _CONV
        base = table[len(module.kernel_size)]
        methods = ("forward",) if module.transposed else ("forward", "_conv_forward")
        if module.groups > 1 and module.groups == module.in_channels:
            return "depthwise: each group sees one channel, so there is nothing to factorise"
        return overrides(module, base, *methods) or storage_refusal(module)

    def slots(self, module: Any) -> list[Slot]:
        read, groups = weight_reader(module), module.groups

        def grouped() -> Tensor:
            weight = read().unflatten(0, (groups, -1))
            return weight.transpose(1, 2) if module.transposed else weight

        parameters = weight_parameters(module)
        return [Slot("", groups, grouped, parameters, tieable=not module.transposed)]

    def build(self, module: Any, factors: Mapping[str, Factors], memo: Memo) -> nn.Module:
        chain = factors[""]
        if module.transposed:
            with torch.no_grad():
                swapped = tuple(
                    t if p else nn.Parameter(_swap_channels(t, g).contiguous(), t.requires_grad)
                    for t, g, p in zip(chain.tensors, chain.groups, chain.every_pivots, strict=True)
                )
            chain = replace(chain, tensors=swapped)
        return FactorizedConv.from_factors(module, chain, dense_copy(module.bias, memo))

    def inputs(
        self, module: Any, wanted: Collection[str], call: Mapping[str, Any]
    ) -> Iterator[tuple[str, Inputs]]:
        if module.transposed:
            yield "", transposed_patches(module, call["input"], call["output_size"])
        else:
            yield "", patches(module, call["input"])

    def outputs(self, module: Any, output: Tensor) -> dict[str, Inputs]:
        return {"": pixels(module, output)}
