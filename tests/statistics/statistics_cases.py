"""What tests of the calibration share."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from skcompress.network.batches import batches
from skcompress.network.weights import Site, select
from skcompress.statistics.collecting import collect
from skcompress.statistics.moments import Statistics


def site(model: nn.Module, name: str) -> Site:
    return next(s for s in select(model).sites if s.name == name)


def statistics(model: nn.Module, data: Any, **settings: Any) -> dict[str, Statistics]:
    return collect(model, select(model).sites, batches("Test", data, model), **settings)


class Listed:
    """Batches of several inputs each, which a plain list would take for (x, y) pairs."""

    def __init__(self, layer: nn.Module, calls: Iterable[tuple[Any, ...]]):
        names = list(inspect.signature(layer.forward).parameters)
        self.batches = [dict(zip(names, call, strict=False)) for call in calls]

    def __iter__(self):
        return iter(self.batches)


def assert_moments(found: Statistics, x: Tensor, group: int = 0, tolerance: float = 1e-5) -> None:
    """Compare one group with explicit inputs x (positions, n)."""
    assert found.moments is not None
    x = x.detach().double()
    assert found.moments.count[group] == len(x)
    gram = x.mT @ x / len(x)
    assert (found.moments.gram[group] - gram).norm() <= tolerance * gram.norm()
    assert (found.moments.mean[group] - x.mean(0)).norm() <= tolerance * gram.trace().sqrt()
