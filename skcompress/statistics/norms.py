"""Statistics of batch normalisations, estimated anew on data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..network.batches import Batch
from ..network.normalization import fixed
from ..network.observing import Reducer, observe


def own_statistics(model: nn.Module) -> dict[str, _BatchNorm]:
    """Find the batch normalisations that normalise by statistics of their own, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm) and fixed(m)}


def estimated(model: nn.Module, data: Iterable[Batch]) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of what each batch normalisation is given on the data, by its name.

    Float64. Each normalises by the statistics of the batch meanwhile, as in training: what comes
    after it sees inputs as it will see them. Those that no batch reaches are left out.
    """
    spreads = _Spreads()
    if own_statistics(model):
        observe(model, data, spreads, title="recalibrate")
    return {name: spread.result() for name, spread in spreads.found.items() if spread.count}


class _Spreads(Reducer):
    """Spreads of what all batch normalisations are given, by their names."""

    def __init__(self) -> None:
        self.found: dict[str, _Spread] = {}

    def attach(self, network: nn.Module) -> None:  # type: ignore[override]
        self.found = {name: _Spread(norm) for name, norm in own_statistics(network).items()}


class _Spread:
    """Mean and variance of what one batch normalisation is given, over all batches.

    count : of values of one channel; square : float64 (channels,), sum of squared distances from
        the mean
    """

    def __init__(self, norm: Any):
        self.count = 0
        self.mean = self.square = torch.zeros((), dtype=torch.float64)
        norm.momentum = 1.0  # it runs the statistics of the last batch, which cost nothing more
        norm.register_forward_pre_hook(self._prepare)
        norm.register_forward_hook(self._add)

    def _prepare(self, norm: nn.Module, args: tuple[Any, ...]) -> None:
        # Nothing can be normalised by itself alone.
        norm.train(args[0].numel() > args[0].shape[1])

    def _add(self, norm: Any, args: tuple[Any, ...], output: Tensor) -> None:
        n = args[0].numel() // args[0].shape[1]
        if n:
            mean, variance = norm.running_mean.double(), norm.running_var.double() * (n - 1) / n
            if n == 1:
                mean, variance = args[0].transpose(0, 1).flatten().double(), torch.zeros_like(mean)
            # Chan, Golub & LeVeque 1983: no difference of large sums.
            total = self.count + n
            apart = mean - self.mean.to(mean)
            self.square = self.square.to(mean) + n * variance
            self.square += apart.square() * (self.count * n / total)
            self.mean = self.mean.to(mean) + apart * (n / total)
            self.count = total

    def result(self) -> tuple[Tensor, Tensor]:
        # As torch does for the statistics that it runs.
        return self.mean, self.square / max(self.count - 1, 1)
