"""Laws of allocations."""

from __future__ import annotations

import copy

import numpy as np

from ..protocols import Allocation, Curve, Layer, Spectrum
from .estimators import checked_estimator
from .spaces import corners


def check_allocation(plugin: Allocation | type[Allocation]) -> None:
    """Check an allocation on a small synthetic model.

    Laws: one answer per layer; a choice names an existing option and never costs more
    than dense; the same call gives the same answer; the layers are untouched; a layer
    that cannot get smaller stays dense; what its `search_space` declares works.
    """
    allocation: Allocation = checked_estimator(plugin, Allocation)
    name = type(allocation).__name__
    layers = _synthetic_layers()
    before = copy.deepcopy(layers)
    for rank in (1.0, 0.6, 0.3):
        choices = allocation.allocate(layers, rank, 10)
        where = f"{name} at rank {rank}"
        assert len(choices) == len(layers), f"{where}: {len(choices)} answers for {len(layers)}"
        for layer, choice in zip(layers, choices, strict=True):
            if choice is not None:
                curve = layer.curves[choice.curve]
                assert 0 <= choice.option < len(curve.costs), f"{where}: no such option"
                cost = curve.costs[choice.option]
                assert cost <= layer.dense, f"{where}: {layer.name} gets larger than dense"
        assert choices[-1] is None, f"{where}: a layer that cannot get smaller was cut"
        assert choices == allocation.allocate(layers, rank, 10), f"{where}: does not repeat"
    for layer, old in zip(layers, before, strict=True):
        for curve, was in zip(layer.curves, old.curves, strict=True):
            same_costs = np.array_equal(curve.costs, was.costs)
            same = same_costs and np.array_equal(curve.errors, was.errors)
            assert same, f"{name} changes the curves it is given"
    for where, variant, _ in corners(allocation):
        assert len(variant.allocate(layers, 1.0, 10)) == len(layers), f"{where}: answers"


def _synthetic_layers() -> list[Layer]:
    rng = np.random.default_rng(0)
    layers = []
    for number, (rows, columns) in enumerate([(32, 48), (64, 32), (16, 90), (2, 2)]):
        values = np.sort(rng.exponential(size=min(rows, columns)))[::-1]
        ranks = np.arange(1, len(values) + 1)
        tails = np.append(np.cumsum(values[::-1] ** 2)[::-1][1:], 0.0)
        curve = Curve("svd", ranks, ranks * (rows + columns), tails, float((values**2).sum()),
                      len(values), (Spectrum(values, (rows, columns)),))  # fmt: skip
        layers.append(Layer(f"layer{number}", rows * columns, (curve,)))
    return layers
