"""How far the outputs of a compressed model are from those of the original."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf, isnan
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..errors import OutputShapeError
from ..network.batches import Batch, Batches, device_of
from ..network.observing import forward, observer, same_randomness
from .moments import piece_size
from .outputs import Form, checked_rows, form_of
from .passes import GIB, length

Remembered = list[tuple[Batch, Tensor]]


def divergence(
    original: nn.Module,
    compressed: nn.Module,
    data: Batches,
    *,
    likelihood: str = "auto",
    verbose: bool | int = False,
) -> float:
    """Compare the outputs of two models once, as `Reference` does for several."""
    # One batch at a time: nothing is compared a second time.
    reference = Reference(original, data, likelihood=likelihood, memory=0)
    return reference.divergence(compressed, verbose=verbose)


class Reference:
    """A model that others are compared with, on the same data.

    likelihood : how its main output is read, see `outputs.form_of`
    memory : bytes for its outputs and the inputs they belong to, on its device. Where
        they are more, it runs along in every comparison.

    Models are run in eval mode, without gradients, as copies that share the parameters.

    >>> from skcompress.network.batches import batches
    >>> model = torch.nn.Linear(4, 3)
    >>> data = batches("Mine", torch.randn(10, 4), model)
    >>> reference = Reference(model, data)
    >>> reference.divergence(model)
    0.0
    """

    def __init__(
        self,
        original: nn.Module,
        data: Batches,
        *,
        likelihood: str = "auto",
        memory: float = 2 * GIB,
        verbose: bool | int = False,
    ):
        self._original = observer(original)
        self._data = data
        self._likelihood = likelihood
        self._form: Form | None = None
        # All or nothing: a loader may come with other batches each time it is read.
        self._remembered: Remembered | None = self._run(memory, verbose) if memory > 0 else None

    def divergence(self, compressed: nn.Module, *, verbose: bool | int = False) -> float:
        """Give the divergence of another model's outputs from this one's.

        Where outputs are distributions over classes: the mean of KL(original ||
        compressed) over all positions, in nats. Otherwise: the sum of squared differences
        over the sum of squares of the original's. Positions that an "attention_mask" masks
        do not count. Outputs of `compressed` with NaN or infinite values give inf.
        """
        copy = observer(compressed)
        lost = total = 0.0
        pairs: Iterable[tuple[Batch, Tensor | None]]
        pairs = self._remembered or ((batch, None) for batch in self._data)
        total_batches = length(self._data)
        bar = tqdm(pairs, desc="compare", unit="batch", total=total_batches, disable=not verbose)
        with bar, same_randomness(device_of(copy)), torch.no_grad():
            for number, (batch, known) in enumerate(bar):
                before = self._rows(number, batch) if known is None else known
                assert self._form is not None
                after = self._form.rows(
                    forward(copy, number, batch, self._data.owner), batch.mask
                ).to(before.device)
                if after.shape != before.shape:
                    raise OutputShapeError(number, after.shape, before.shape)
                compare = _squares if self._form.axis is None else _kl
                lost_here, total_here = compare(before, after)
                lost, total = lost + lost_here, total + total_here
        if isnan(lost):  # outputs with NaN, or with every class ruled out
            return inf
        return lost / total if total else (inf if lost else 0.0)

    def _rows(self, number: int, batch: Batch) -> Tensor:
        result = forward(self._original, number, batch, self._data.owner)
        if self._form is None:
            self._form = form_of(result, batch, self._likelihood)
        return checked_rows(self._form, result, batch, number, self._data.owner)

    def _run(self, memory: float, verbose: bool | int) -> Remembered | None:
        """Run the original on all the data; None where that is more than `memory` holds."""
        found: Remembered = []
        held = 0
        total = length(self._data)
        bar = tqdm(self._data, desc="original", unit="batch", total=total, disable=not verbose)
        with bar, same_randomness(device_of(self._original)), torch.no_grad():
            for number, batch in enumerate(bar):
                rows = self._rows(number, batch)
                held += rows.nbytes + sum(map(_n_bytes, (*batch.args, *batch.kwargs.values())))
                if held > memory:
                    return None
                found.append((batch, rows))
        return found


def _n_bytes(value: Any) -> int:
    if isinstance(value, tuple):  # a packed sequence is one too
        return sum(map(_n_bytes, value))
    return value.nbytes if isinstance(value, Tensor) else 0


def _kl(before: Tensor, after: Tensor) -> tuple[float, float]:
    """Sum of KL(before || after) over rows of logits, and the number of rows."""
    total = torch.zeros((), dtype=torch.float64, device=before.device)
    n_rows = max(1, piece_size(before.device) // before.shape[1])
    for one, other in zip(before.split(n_rows), after.split(n_rows), strict=True):
        # In float64: what close distributions differ in is below float32's rounding.
        p, q = one.double().log_softmax(-1), other.double().log_softmax(-1)
        weights = p.exp()
        total += torch.where(weights > 0, weights * (p - q), 0.0).sum()
    value = total.item()
    return (value if isnan(value) else max(0.0, value)), len(before)


def _squares(before: Tensor, after: Tensor) -> tuple[float, float]:
    """Sum of squared differences, and of squares."""
    lost = total = 0.0
    n_rows = max(1, piece_size(before.device) // max(1, before.shape[1]))
    for one, other in zip(before.split(n_rows), after.split(n_rows), strict=True):
        reference = one.double()
        lost += (other.double() - reference).square().sum().item()
        total += reference.square().sum().item()
    return lost, total
