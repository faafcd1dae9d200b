"""Who reads a tensor, and what it is added to, as one forward shows."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ADD = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


class Reading(NamedTuple):
    """One operation that reads a tensor.

    addend : the other term, of the same shape, where it is a sum
    in_place : whether the sum takes the tensor's place: who reads it later reads the sum
    """

    addend: Tensor | None = None
    in_place: bool = False


class Readers(TorchDispatchMode):
    """Notes, for the tensors it is told to watch, the operations that read them.

    readings : by the id of the tensor, in their order
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise torch imports its compiler here, which takes seconds

    def __init__(self) -> None:
        super().__init__()
        self._watched: dict[int, Tensor] = {}  # held, so that an id stays one tensor's
        self.readings: dict[int, list[Reading]] = defaultdict(list)

    def watch(self, tensor: Tensor) -> None:
        """Note what reads it from now on."""
        self._watched[id(tensor)] = tensor

    def alone(self, tensor: Tensor) -> Reading | None:
        """Give the only operation that reads it, up to a sum in its place."""
        found = self.readings[id(tensor)]
        return found[0] if len(found) == 1 or (found and found[0].in_place) else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        terms = {}
        is_sum = func in _ADD and not kwargs and isinstance(args[1], Tensor)
        if is_sum and args[0].shape == args[1].shape:
            in_place = func is torch.ops.aten.add_.Tensor
            terms = {id(args[1]): Reading(args[0]), id(args[0]): Reading(args[1], in_place)}
        for leaf in tree_leaves((args, kwargs or {})):
            if id(leaf) in self._watched:
                self.readings[id(leaf)].append(terms.get(id(leaf), Reading()))
        return func(*args, **(kwargs or {}))

    def given_back(self, result: Any) -> None:
        """Count the caller of the model, who reads what it gives."""
        for tensor in tensors_in(result):
            self.readings[id(tensor)].append(Reading())


def tensors_in(result: Any) -> Iterator[Tensor]:
    """Find the tensors in what a model gives."""
    if dataclasses.is_dataclass(result):
        result = vars(result)
    for leaf in tree_leaves(result):
        if isinstance(leaf, Tensor):
            yield leaf
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            yield from tensors_in(leaf)
