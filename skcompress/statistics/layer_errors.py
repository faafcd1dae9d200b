"""How far what layers give in one network is from what they gave in another."""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from ..network.batches import Batch
from ..network.observing import Reducer, observe


def output_errors(
    original: nn.Module, compressed: nn.Module, names: Iterable[str], data: Iterable[Batch]
) -> dict[str, float]:
    """Give the `LayerErrors` of two networks on data, by the name of the module."""
    errors = LayerErrors(names)
    observe([original, compressed], data, errors, title="compare")
    return errors.values


class LayerErrors(Reducer):
    """Norm of the difference of what modules give in two networks, relative to what they gave.

    names : of modules of both networks. Those that no batch reaches, or not as often in both,
        are left out.

    Every layer meets the inputs that its own network gives it: errors of the layers before are
    part of the difference.
    """

    def __init__(self, names: Iterable[str]):
        self._names = list(dict.fromkeys(names))
        self._given: tuple[dict[str, list[Tensor]], ...] = ({}, {})
        self._sums: dict[str, list[float]] = {}

    def attach(self, *networks: nn.Module) -> None:
        for network, outputs in zip(networks, self._given, strict=True):
            for name in self._names:
                network.get_submodule(name).register_forward_hook(_note(outputs, name))

    def after(self, batch: Batch, *outputs: Any) -> None:
        first, second = self._given
        for name, before in first.items():
            after = second.get(name, [])
            if [x.shape for x in before] == [x.shape for x in after]:
                total = self._sums.setdefault(name, [0.0, 0.0])
                for x, y in zip(before, after, strict=True):
                    # In half precision, squares of outputs may be too large.
                    wide = x.to(torch.promote_types(x.dtype, torch.float32))
                    total[0] += float((wide - y).square().sum())
                    total[1] += float(wide.square().sum())
        for given in self._given:
            given.clear()

    @property
    def values(self) -> dict[str, float]:
        """The errors on the batches so far, by the name of the module."""
        return {name: sqrt(lost / seen) for name, (lost, seen) in self._sums.items() if seen > 0}


def _note(outputs: dict[str, list[Tensor]], name: str) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        if isinstance(first, Tensor) and first.is_floating_point() and not first.is_nested:
            # What comes next may change it in place.
            outputs.setdefault(name, []).append(first.clone())

    return hook
