"""What a model gives, as rows that can be compared: of logits, or of plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..errors import CalibrationValueError, NonFiniteOutputError, OutputTypeError
from ..network.batches import Batch

LIKELIHOODS = ("auto", "categorical", "gaussian")
# How far from 1 the sum of probabilities, or the norm of an embedding, may be in half precision.
_UNIT = 1e-2


@dataclass(frozen=True)
class Form:
    """How to read the main output of a model; settled on one batch, the same for all others.

    axis : of the classes, over which the output is a distribution at each position; None
        where it is no distribution, but values with an error of unit variance
    probabilities : whether it gives probabilities themselves, not logits
    """

    axis: int | None
    probabilities: bool = False

    def rows(self, result: Any, mask: Tensor | None) -> Tensor:
        """Give the main output as (positions, size), with gradient where it has one.

        For a distribution, a row has the logits of one position. Otherwise it has the
        values of one input, or of one position of a sequence where there is a mask.

        mask : (batch, sequence), False at padding. It counts where the output has a row
            for each of these positions, and says nothing about others.
        """
        output = main_output(result)
        if self.axis is None:
            known = mask is not None and output.dim() > 1 and output.shape[:2] == mask.shape
            lead = output.shape[: 2 if known else 1]
        else:
            output = output.movedim(self.axis, -1)
            lead = output.shape[:-1]
        size = output.shape[len(lead) :]
        rows = output.reshape(prod(lead), prod(size))
        if mask is not None and lead == mask.shape:
            rows = rows[mask.reshape(-1)]
        if self.probabilities:
            rows = rows.clamp_min(torch.finfo(rows.dtype).tiny).log()
        return rows

    def finite(self, rows: Tensor) -> bool:
        """Whether rows mean something. Classes that are ruled out have logits of -inf."""
        bad = ~rows.isfinite() if self.axis is None else rows.isnan() | (rows == float("inf"))
        return not bad.any()


def main_output(result: Any) -> Tensor:
    """Find the floating tensor that counts in what a forward gives.

    `.logits`, else `.last_hidden_state` (or entries of these names), else the first
    floating tensor that is not a single number, as losses are: of `(output, state)`, as
    recurrent layers give it, the output.

    >>> main_output((torch.tensor(0.5), {"ids": torch.ones(2, dtype=torch.int64),
    ...                                  "scores": torch.ones(2, 3)})).shape
    torch.Size([2, 3])
    """
    for name in ("logits", "last_hidden_state"):
        found = _named(result, name)
        if found is not None:
            return found
    first = next(_floating(result), None)
    if first is None:
        raise OutputTypeError(result)
    return first


def form_of(result: Any, batch: Batch, likelihood: str = "auto") -> Form:
    """Settle how to read the main output of a model, from what it gives for one batch.

    likelihood : "categorical" for logits or probabilities of classes, "gaussian" for
        values, or "auto":

    - `.logits` are logits, `.last_hidden_state` has values;
    - an output as wide as a floating input with as many axes is a reconstruction or a
      forecast of that input: values;
    - what adds up to 1 over the classes, from 0 on, has probabilities of classes;
    - vectors of length 1 (embeddings) and numbers from 0 to 1 (of sigmoids) are values;
    - any other output is one of logits, unless there would be one class only.

    Classes are on axis 1 of (N, C) and of (N, C, *spatial) with two spatial axes or more,
    and on the last axis of (N, T, C).

    Nothing in an output (N, C) tells targets of a regression, or logits of independent labels,
    from logits: "auto" takes them for these, unless `likelihood` says "gaussian".
    """
    if likelihood not in LIKELIHOODS:
        rule = " or ".join(map(repr, LIKELIHOODS))
        raise CalibrationValueError("likelihood", rule, likelihood)
    output = main_output(result)
    axis = 1 if output.dim() > 3 else output.dim() - 1
    possible = output.dim() > 1 and output.shape[axis] > 1
    if likelihood == "categorical" and not possible:
        rule = f"'gaussian' for outputs of shape {tuple(output.shape)}, which have no classes"
        raise CalibrationValueError("likelihood", rule, likelihood)
    if likelihood == "gaussian" or not possible:
        return Form(None)
    rows = output.detach().movedim(axis, -1)
    probabilities = _are_probabilities(rows)
    said = likelihood == "categorical" or _named(result, "logits") is not None
    if not said and (
        _named(result, "last_hidden_state") is not None
        or _echoes(output, axis, batch)
        or (not probabilities and (_are_embeddings(rows) or _are_shares(rows)))
    ):
        return Form(None)
    return Form(axis, probabilities)


def checked_rows(form: Form, result: Any, batch: Batch) -> Tensor:
    """Give the rows of a model whose outputs have to mean something."""
    rows = form.rows(result, batch.mask)
    if not form.finite(rows.detach()):
        raise NonFiniteOutputError(batch.owner, batch.number)
    return rows


def _named(result: Any, name: str) -> Tensor | None:
    found = result.get(name) if isinstance(result, Mapping) else getattr(result, name, None)
    return found if isinstance(found, Tensor) and found.is_floating_point() else None


def _floating(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        if result.is_floating_point() and result.dim():
            yield result
        return
    items: Any = ()
    if isinstance(result, Mapping):
        items = result.values()
    elif isinstance(result, tuple | list):
        items = result
    elif dataclasses.is_dataclass(result):
        items = vars(result).values()
    for item in items:
        yield from _floating(item)


def _echoes(output: Tensor, axis: int, batch: Batch) -> bool:
    """Whether some floating input has as many axes as the output, and is as wide."""
    return any(
        isinstance(x, Tensor)
        and x.is_floating_point()
        and x.dim() == output.dim()
        and x.shape[axis] == output.shape[axis]
        for x in (*batch.args, *batch.kwargs.values())
    )


def _are_probabilities(x: Tensor) -> bool:
    return bool((x >= 0).all() and ((x.float().sum(-1) - 1).abs() <= _UNIT).all())


def _are_embeddings(x: Tensor) -> bool:
    return bool(((x.float().norm(dim=-1) - 1).abs() <= _UNIT).all())


def _are_shares(x: Tensor) -> bool:
    """Whether these are numbers from 0 to 1, as sigmoids give them; probabilities are not asked."""
    return bool(((x >= 0) & (x <= 1)).all() and (x > 0).any())
