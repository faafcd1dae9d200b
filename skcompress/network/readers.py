"""Who reads a tensor, as one forward shows."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Readers(TorchDispatchMode):
    """Counts the operations that read the tensors it is told to watch."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch imports its compiler here, which takes seconds

    def __init__(self) -> None:
        super().__init__()
        self.watched: dict[int, Tensor] = {}  # held, so that an id stays one tensor's
        self.counts: Counter[int] = Counter()

    def watch(self, tensor: Tensor) -> None:
        """Count what reads it from now on, in `counts`, by its id."""
        self.watched[id(tensor)] = tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs or {})):
            if id(leaf) in self.watched:
                self.counts[id(leaf)] += 1
        return func(*args, **(kwargs or {}))


def tensors_in(result: Any) -> Iterator[Tensor]:
    """Find the tensors in what a model gives, which the caller reads."""
    if dataclasses.is_dataclass(result):
        result = vars(result)
    for leaf in tree_leaves(result):
        if isinstance(leaf, Tensor):
            yield leaf
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            yield from tensors_in(leaf)
