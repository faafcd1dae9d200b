"""Channels ranked by what the network's outputs lose with them: Taylor expansion and relevance.

Both read the derivative of a goal by a gate on each channel (see `gates`), sample by sample, so
that samples and classes can count more than others.

"taylor": the goal is the log-likelihood of the labels; a channel scores the mean of the squared
derivative, what the likelihood changes by when the channel goes (Molchanov et al. 2019, arXiv
1906.10771). Where the data has no labels they are drawn from what the network itself says, which
makes it the diagonal of the Fisher information (Theis et al. 2018, arXiv 1801.05787).

"lrp": the goal is the score of the labelled class, or of the most probable one; a channel scores
the size of the relevance that flows through it, by the rule alpha = 1, beta = 0 in all layers that
mix channels (Yeom et al. 2021, "Pruning by explaining", arXiv 1912.08881).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skcompress.fitting.calibrated import foldable_norms
from skcompress.network.batches import Batch, Batches
from skcompress.network.normalization import fold, following
from skcompress.network.observing import observer
from skcompress.statistics.backward import prepared, score
from skcompress.statistics.outputs import Form, checked_rows, form_of
from skcompress.statistics.relevance import set_rule

from .errors import LabelError
from .gates import gate_gradients
from .groups import ChannelGroup
from .removing import mixes

# From rows of outputs, how they are read, and the class of each row (None where it is not known),
# to what is to be differentiated: the sum of the rows times this.
_Direction = Callable[[Tensor, Form, Tensor | None], Tensor]


def taylor_scores(
    model: nn.Module, groups: Sequence[ChannelGroup], data: Batches, seed: int
) -> dict[str, Tensor]:
    """Mean squared change of the log-likelihood by each unit, float64 (units,), by group."""
    draws = torch.Generator().manual_seed(seed)

    def direction(rows: Tensor, form: Form, classes: Tensor | None) -> Tensor:
        if classes is None:
            return score(rows, form, "labels", draws)
        return _ones(rows, classes) - rows.softmax(-1)

    return _averaged(prepared(observer(model)), groups, data, direction, torch.square)


def relevance_scores(
    model: nn.Module, groups: Sequence[ChannelGroup], data: Batches
) -> dict[str, Tensor]:
    """Size of the mean relevance of each unit, float64 (units,), by group."""
    names = [name for name, layer in model.named_modules() if mixes(layer)]
    norms = foldable_norms(model, following(model, names, data))
    # Otherwise the shift of a normalisation takes relevance that is due to channels.
    network = prepared(observer(fold(model, norms) if norms else model))
    for layer in network.modules():
        if mixes(layer):
            set_rule(layer, "positive")

    def direction(rows: Tensor, form: Form, classes: Tensor | None) -> Tensor:
        if form.axis is None:
            return rows.sign()
        return _ones(rows, rows.argmax(1) if classes is None else classes)

    found = _averaged(network, groups, data, direction, lambda relevance: relevance)
    # What speaks against a class is as much a part of what the network says of it.
    return {name: relevance.abs() for name, relevance in found.items()}


def _ones(rows: Tensor, classes: Tensor) -> Tensor:
    return torch.zeros_like(rows).scatter_(1, classes[:, None], 1.0)


def _averaged(
    network: nn.Module,
    groups: Sequence[ChannelGroup],
    data: Batches,
    direction: _Direction,
    value: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """Weighted mean over samples of `value` of the derivatives."""
    form: list[Form] = []

    def goal(result: Any, batch: Batch, number: int) -> Tensor:
        if not form:
            form.append(form_of(result, batch))
        rows = checked_rows(form[0], result, batch, number, data.owner)
        classes = _classes(form[0], rows, batch, number, data.owner)
        return (rows * direction(rows.detach(), form[0], classes)).sum()

    totals: dict[str, Tensor] = {}
    sums = [0.0]

    def visit(batch: Batch, slopes: dict[str, Tensor]) -> None:
        n = max((len(slope) for slope in slopes.values()), default=0)
        weights = torch.ones(n) if batch.weights is None else batch.weights
        sums[0] += float(weights.sum())
        for name, slope in slopes.items():
            # Rows that cannot be told apart by samples count alike.
            by_row = weights.to(slope) if len(weights) == len(slope) else slope.new_ones(len(slope))
            part = (by_row[:, None] * value(slope)).double().sum(0).cpu()
            totals[name] = totals[name] + part if name in totals else part

    gate_gradients(network, groups, data, goal, visit)
    return {name: total / (sums[0] or 1.0) for name, total in totals.items()}


def _classes(form: Form, rows: Tensor, batch: Batch, number: int, owner: str) -> Tensor | None:
    """Class of each row; None where outputs are no distributions, or the data does not say it."""
    if form.axis is None or batch.labels is None:
        return None
    # One class for each sample says nothing about each position of a sequence.
    if len(batch.labels) != len(rows):
        return None
    if bool(((batch.labels < 0) | (batch.labels >= rows.shape[1])).any()):
        why = f"batch {number} of its data has labels outside 0..{rows.shape[1] - 1}"
        raise LabelError(owner, why)
    return batch.labels
