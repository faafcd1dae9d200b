"""How far the outputs of a compressed model are from those of the original."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf, isnan
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import OutputShapeError, OutputTypeError
from ..network.batches import Batch
from ..network.observing import Reducer, observe
from .moments import piece_size
from .outputs import Form, checked_rows, form_of


def divergence(
    original: nn.Module,
    compressed: nn.Module,
    data: Iterable[Batch],
    *,
    likelihood: str = "auto",
    verbose: bool | int = False,
) -> float:
    """Give how far the outputs of two models are apart on data, as `Divergence` has it.

    >>> from skcompress.network.batches import batches
    >>> model = torch.nn.Linear(4, 3)
    >>> divergence(model, model, batches("Mine", torch.randn(10, 4), model))
    0.0
    """
    found = Divergence(likelihood)
    observe([original, compressed], data, found, title="compare", verbose=verbose)
    assert found.value is not None
    return found.value


class Divergence(Reducer):
    """How far the outputs of a second network are from those of the first.

    likelihood : how the main output is read, see `outputs.form_of`
    needed : whether outputs that cannot be compared, such as lists of found objects, are an error;
        otherwise `value` is None

    `value`, where outputs are distributions over classes: the mean of KL(first || second) over all
    positions, in nats. Otherwise: the sum of squared differences over the sum of squares of the
    first's. Positions that an "attention_mask" masks do not count. Outputs of the second with NaN
    or infinite values give inf; of the first they are an error.
    """

    def __init__(self, likelihood: str = "auto", needed: bool = True):
        self._likelihood, self._needed = likelihood, needed
        self._form: Form | None = None
        self._lost = self._total = 0.0
        self._comparable = True

    def after(self, batch: Batch, before: Any, now: Any) -> None:  # type: ignore[override]
        try:
            if self._comparable:
                self._add(batch, before, now)
        except (OutputTypeError, OutputShapeError):
            if self._needed:
                raise
            self._comparable = False

    def _add(self, batch: Batch, before: Any, now: Any) -> None:
        if self._form is None:
            self._form = form_of(before, batch, self._likelihood)
        rows = checked_rows(self._form, before, batch)
        others = self._form.rows(now, batch.mask).to(rows.device)
        if others.shape != rows.shape:
            raise OutputShapeError(batch.number, others.shape, rows.shape)
        lost, total = (_squares if self._form.axis is None else _kl)(rows, others)
        self._lost, self._total = self._lost + lost, self._total + total

    @property
    def value(self) -> float | None:
        """The divergence on the batches so far."""
        if not self._comparable:
            return None
        if isnan(self._lost):  # outputs with NaN, or with every class ruled out
            return inf
        return self._lost / self._total if self._total else (inf if self._lost else 0.0)


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
