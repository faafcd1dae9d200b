"""How far what layers give in one network is from what they gave in another."""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from ..network.batches import Batches, device_of
from ..network.observing import forward, observer, same_randomness


def output_errors(
    original: nn.Module, compressed: nn.Module, names: Iterable[str], data: Batches
) -> dict[str, float]:
    """Norm of the difference of what a module gives in two networks, relative to what it gave.

    names : of modules of both networks. Those that no batch reaches, or not as often in both,
    are left out.

    Every layer meets the inputs that its own network gives it: errors of the layers before are
    part of the difference.
    """
    names = list(dict.fromkeys(names))
    networks = observer(original), observer(compressed)
    given: tuple[dict[str, list[Tensor]], ...] = ({}, {})
    for network, outputs in zip(networks, given, strict=True):
        for name in names:
            network.get_submodule(name).register_forward_hook(_note(outputs, name))
    sums: dict[str, list[float]] = {}
    with same_randomness(device_of(networks[0])), torch.no_grad():
        for number, batch in enumerate(data):
            for network, outputs in zip(networks, given, strict=True):
                outputs.clear()
                forward(network, number, batch, data.owner)
            for name, before in given[0].items():
                after = given[1].get(name, [])
                if [x.shape for x in before] == [x.shape for x in after]:
                    total = sums.setdefault(name, [0.0, 0.0])
                    for x, y in zip(before, after, strict=True):
                        # In half precision, squares of outputs may be too large.
                        wide = x.to(torch.promote_types(x.dtype, torch.float32))
                        total[0] += float((wide - y).square().sum())
                        total[1] += float(wide.square().sum())
    return {name: sqrt(lost / seen) for name, (lost, seen) in sums.items() if seen > 0}


def _note(outputs: dict[str, list[Tensor]], name: str) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        if isinstance(first, Tensor) and first.is_floating_point() and not first.is_nested:
            # What comes next may change it in place.
            outputs.setdefault(name, []).append(first.clone())

    return hook
