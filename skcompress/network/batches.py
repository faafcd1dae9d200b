"""From what people pass as data to the arguments of the model's forward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset

from ..errors import (
    BatchTypeError,
    DataTypeError,
    EmptyDataError,
    NonFiniteDataError,
    OneShotDataError,
)
from ..randomness import guarded

_INPUTS = (Tensor, np.ndarray, PackedSequence)


@dataclass(frozen=True)
class Batch:
    """Arguments for one forward.

    mask : (batch, sequence), False at padding; from a dict's "attention_mask"
    labels : (batch,) int64, the class of each input, where the data says it: integers as the
        second item of a tuple, or a dict's "labels"
    weights : float32 (batch,), how much each sample counts in moments; None for alike
    number, owner : which batch, counted from 0, and of whose data: for error messages
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    mask: Tensor | None = None
    labels: Tensor | None = None
    weights: Tensor | None = None
    number: int = 0
    owner: str = "the caller"

    @property
    def leaves(self) -> list[Tensor]:
        """Every tensor among the arguments."""
        return [x for x in tree_leaves((self.args, self.kwargs)) if isinstance(x, Tensor)]


@dataclass(frozen=True)
class Batches:
    """Data as arguments of a model's forward; to be iterated as often as needed.

    owner : whose data it is, for error messages
    dtype : of the floating inputs; None leaves them as they are
    accepted : names that the forward takes; None where it takes any
    weigh : gives the `Batch.weights` of a batch, of which the first sample has this number
    every : of how many batches one is used
    """

    owner: str
    data: Iterable[Any]
    device: torch.device
    dtype: torch.dtype | None
    accepted: tuple[str, ...] | None
    batch_size: int
    weigh: Callable[[Batch, int], Tensor] | None = None
    every: int = 1

    def __len__(self) -> int:
        """Give the number of batches, where the data knows it."""
        n = len(self.data)  # type: ignore[arg-type]
        n_all = -(-n // self.batch_size) if isinstance(self.data, Tensor | np.ndarray) else n
        return len(range(0, n_all, self.every))

    def __iter__(self) -> Iterator[Batch]:
        number, n_before = -1, 0
        for number, raw in enumerate(guarded(self._raw(), self.device)):
            batch = replace(self._batch(number, raw), number=number, owner=self.owner)
            if self.weigh is not None:
                batch = replace(batch, weights=self.weigh(batch, n_before))
                n_before += n_samples(batch)
            if number % self.every == 0:
                yield batch
        if number < 0:
            raise EmptyDataError(self.owner, self.data)

    def _raw(self) -> Iterable[Any]:
        if not isinstance(self.data, Tensor | np.ndarray):
            return self.data
        starts = range(0, len(self.data), self.batch_size)
        return (self.data[start : start + self.batch_size] for start in starts)

    def _batch(self, number: int, raw: Any) -> Batch:
        # A packed sequence is a tuple to Python.
        labels = None
        if isinstance(raw, tuple | list) and raw and not isinstance(raw, PackedSequence):
            labels = self._labels(raw[1]) if len(raw) > 1 else None
            raw = raw[0]
        if isinstance(raw, _INPUTS):
            return Batch((self._input(number, "the input", raw),), {}, labels=labels)
        if isinstance(raw, Mapping):
            labels = self._labels(raw.get("labels")) if labels is None else labels
            return replace(self._keywords(number, raw), labels=labels)
        raise BatchTypeError(self.owner, number, f"a {type(raw).__name__}")

    def _labels(self, value: Any) -> Tensor | None:
        """Classes, one for each input; None where a value is anything else."""
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
            value = torch.tensor(value.astype(np.int64))
        if not isinstance(value, Tensor) or value.dim() != 1:
            return None
        whole = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
        return value.detach().to(self.device, torch.int64) if whole else None

    def _keywords(self, number: int, raw: Mapping[Any, Any]) -> Batch:
        kwargs = {
            str(name): self._input(number, repr(name), value)
            for name, value in raw.items()
            # Labels and such, which this forward may not ask for, are left out.
            if self.accepted is None or name in self.accepted
        }
        if not any(isinstance(value, (*_INPUTS, tuple)) for value in kwargs.values()):
            listed = ", ".join(f"{name}: {type(value).__name__}" for name, value in raw.items())
            takes = "tensors or arrays" if self.accepted is None else ", ".join(self.accepted)
            hint = f"the forward of the model takes {takes}"
            raise BatchTypeError(self.owner, number, f"a dict of {{{listed}}}", hint)
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2:
            return Batch((), kwargs, mask != 0)
        return Batch((), kwargs)

    def _input(self, number: int, name: str, value: Any) -> Any:
        """Check and move what may be tensors, tuples of them, or plain settings."""
        if isinstance(value, PackedSequence):
            settings: Any = {"device": self.device, "dtype": self.dtype}
            return value.to(**settings)
        if type(value) is tuple:
            return tuple(self._input(number, name, item) for item in value)
        if not isinstance(value, Tensor | np.ndarray):
            return value
        x = value.detach() if isinstance(value, Tensor) else self._from_numpy(number, name, value)
        x = x.clone() if x.is_inference() else x
        if x.is_floating_point() and not x.is_nested:
            n_bad = int(x.numel() - x.isfinite().sum())
            if n_bad:
                raise NonFiniteDataError(self.owner, number, name, n_bad, value.shape)
        return x.to(self.device, self.dtype if x.is_floating_point() else None)

    def _from_numpy(self, number: int, name: str, value: np.ndarray) -> Tensor:
        try:
            return torch.tensor(np.ascontiguousarray(value))
        except TypeError:
            what = f"{name} as an array of {value.dtype}"
            raise BatchTypeError(self.owner, number, what, "torch has no such numbers") from None


def batches(owner: str, data: Any, model: nn.Module, *, batch_size: int = 64) -> Batches:
    """Understand `data` as batches for `model`, or refuse it as an error of `owner`.

    data : a tensor or an array, which is cut along its first axis; or a DataLoader or any
        iterable of batches that can be read again
    batch_size : of the pieces of a tensor or an array

    Inputs are moved to the model's device. Floating ones are cast to the dtype of the
    model's parameters, where these have only one. Of a dict, what the forward does not
    accept is left out.

    >>> model = torch.nn.Linear(3, 2)
    >>> [batch.args[0].shape for batch in batches("Mine", np.zeros((100, 3)), model)]
    [torch.Size([64, 3]), torch.Size([36, 3])]
    """
    _check(owner, data)
    floating = {p.dtype for p in model.parameters() if p.is_floating_point()}
    dtype = floating.pop() if len(floating) == 1 else None
    return Batches(owner, data, device_of(model), dtype, _accepted(model), batch_size)


def n_samples(batch: Batch) -> int:
    """How many samples a batch has: the length of its inputs along their first axis."""
    first = next(iter(batch.leaves), None)
    return 1 if first is None or first.dim() == 0 else len(first)


def device_of(model: nn.Module) -> torch.device:
    """Device of a model's first parameter or buffer; the CPU where it has none."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def _check(owner: str, data: Any) -> None:
    if isinstance(data, Iterator):
        raise OneShotDataError(owner, data)
    if isinstance(data, Mapping):
        raise DataTypeError(owner, data, "a single batch goes into a list, data=[batch]")
    if isinstance(data, Dataset):
        # Its items have no batch axis, which some layers would not even notice.
        raise DataTypeError(owner, data, "wrap it, data=DataLoader(dataset, batch_size=64)")
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise DataTypeError(owner, data)
    if isinstance(data, Tensor | np.ndarray) and (data.ndim == 0 or 0 in data.shape):
        raise EmptyDataError(owner, data)
    if isinstance(data, list | tuple) and not data:
        raise EmptyDataError(owner, data)
    if isinstance(data, tuple) and all(isinstance(item, Tensor | np.ndarray) for item in data):
        hint = (
            "is it one batch (inputs, labels), data=[batch], batches of inputs, "
            "data=list(batches), or inputs and labels to be cut into batches, "
            "data=DataLoader(TensorDataset(inputs, labels), batch_size=64)?"
        )
        raise DataTypeError(owner, data, hint)


def _accepted(model: nn.Module) -> tuple[str, ...] | None:
    # A compiled one takes anything, and hands it on.
    called = getattr(model, "_orig_mod", model)
    parameters = inspect.signature(called.forward).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(p.name for p in parameters if p.kind in named)
