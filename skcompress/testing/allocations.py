"""Laws of allocations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..protocols import Allocation, Curve, Layer, Prunable, SparsityAllocation, Spectrum
from .estimators import checked_estimator
from .spaces import corners


def check_allocation(plugin: Allocation | SparsityAllocation | type) -> None:
    """Check an allocation, of ranks, of zeros or of both, on a small synthetic model.

    Laws of ranks: one answer per layer; a choice names an existing option and never costs more
    than dense; the same call gives the same answer; the layers are untouched; a layer
    that cannot get smaller stays dense.

    Laws of zeros: one number per weight, from its least to its size, that add up exactly, for
    every budget; the same call gives the same answer; scores and weights are untouched, and may all
    be equal, or zero.

    What its `search_space` declares works.
    """
    allocation = checked_estimator(plugin, (Allocation, SparsityAllocation))
    if isinstance(allocation, Allocation):
        _check_ranks(allocation)
    if isinstance(allocation, SparsityAllocation):
        _check_zeros(allocation)


def _check_zeros(allocation: SparsityAllocation) -> None:
    name = type(allocation).__name__
    unknown = set(allocation.needs) - {"distortion", "measured_distortion"}
    assert not unknown, f"{name}: needs {sorted(unknown)}, which is no field of Prunable"
    for case in ("generic", "all equal", "all zero"):
        values = _values(case)
        before = [v.clone() for v in values]
        weights = [
            Prunable(
                f"weight{i}", tuple(v.shape), least, v.abs, v.clone,
                _distortion(v) if allocation.needs else None,
            )
            for i, (v, least) in enumerate(zip(values, (1, 40, 0, 8, 2), strict=True))
        ]  # fmt: skip
        least, most = sum(w.least for w in weights), sum(w.size for w in weights)
        for n_kept in (least, least + 1, (3 * least + most) // 4, most // 2, most - 1, most):
            where = f"{name} on {case} with {n_kept} of {most}"
            counts = allocation.divide(weights, n_kept)
            assert len(counts) == len(weights), f"{where}: {len(counts)} answers"
            for weight, count in zip(weights, counts, strict=True):
                known = f"{where}: {weight.name} keeps {count}"
                assert weight.least <= count <= weight.size, f"{known}, out of its bounds"
            assert sum(counts) == n_kept, f"{where}: keeps {sum(counts)} in sum"
            assert counts == allocation.divide(weights, n_kept), f"{where}: does not repeat"
        same = all(map(torch.equal, before, values))
        assert same, f"{name} changes the weights it is given"


def _values(case: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    shapes = [(1, 8, 12), (2, 6, 4, 3, 3), (1, 1, 5), (1, 30, 2), (3, 4, 4)]
    sizes = {"generic": 1.0, "all equal": 0.0, "all zero": 0.0}
    base = 0.5 if case == "all equal" else 0.0
    return [base + sizes[case] * torch.randn(shape, generator=generator) for shape in shapes]


def _distortion(values: Tensor) -> Callable[[Sequence[int]], list[float]]:
    ordered = values.flatten().square().sort(descending=True).values

    def lost(counts: Sequence[int]) -> list[float]:
        return [float(ordered[count:].sum()) for count in counts]

    return lost


def _check_ranks(allocation: Allocation) -> None:
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
