"""In which order the layers of a network run, and how often, as its forwards show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from heapq import heappop, heappush
from itertools import pairwise
from typing import Any

from torch import nn

from ..network.batches import Batch
from ..network.calls import Call
from ..network.observing import forward


def calls_in_order(
    model: nn.Module,
    names: Sequence[str],
    batches: Sequence[Batch],
    first: Mapping[str, Sequence[Call]],
) -> dict[str, int]:
    """How often each named module is called in one forward, at most, in order of execution.

    model : an observed copy; first : calls in the first batch, in order, as `look` gives them

    Forwards run on batches of other shapes, which loops may run over, and on more as long as some
    module, such as an expert for other tokens, was not reached.
    """
    most = Counter({n: sum(c.times for c in found) for n, found in first.items() if n in names})
    paths = [list(most)]
    shapes = {_shapes(batch) for batch in batches[:1]}
    counts: Counter[str] = Counter()  # of the forward under way

    def note(name: str) -> Any:
        return lambda *_: counts.update([name])

    hooks = [model.get_submodule(n).register_forward_pre_hook(note(n)) for n in names]
    try:
        for batch in batches[1:]:
            if _shapes(batch) not in shapes or len(most) < len(names):
                shapes.add(_shapes(batch))
                counts.clear()
                forward(model, batch)
                paths.append(list(counts))
                most |= counts
    finally:
        for hook in hooks:
            hook.remove()
    return {name: most[name] for name in _order(paths, names)}


def _order(paths: list[list[str]], names: Sequence[str]) -> list[str]:
    """Merge the orders in which several forwards call modules.

    Modules that no forward tells the order of come as they do in `names`.
    """
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for path in paths:
        for name in path:
            sorter.add(name)
        for before, after in pairwise(path):
            sorter.add(after, before)
    try:
        sorter.prepare()
    except CycleError:  # each forward has an order of its own
        return list(dict.fromkeys(name for path in paths for name in path))
    number = {name: n for n, name in enumerate(names)}
    order: list[str] = []
    ready: list[tuple[int, str]] = []
    while sorter.is_active():
        for name in sorter.get_ready():
            heappush(ready, (number[name], name))
        order.append(heappop(ready)[1])
        sorter.done(order[-1])
    return order


def _shapes(batch: Batch) -> tuple[Any, ...]:
    return tuple(leaf.shape for leaf in batch.leaves)
