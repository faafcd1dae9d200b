"""Channels ranked by what the network's outputs lose with them: Taylor expansion and relevance.

Both read the derivative of a goal by a gate on each channel (see `gates`), sample by sample, so
that samples and classes can count more than others.

"taylor": the goal is the log-likelihood of the labels; a channel scores the mean of the squared
derivative, what the likelihood changes by when the channel goes (Molchanov et al. 2019, arXiv
1906.10771). Without labels they are drawn from what the network itself says, which makes it the
diagonal of the Fisher information of the gates (Theis et al. 2018, arXiv 1801.05787).

"lrp": the goal is the score of the labelled class, or of the most probable one; a channel scores the
relevance that flows through it, by the rule alpha = 1, beta = 0 in all layers that mix channels
(Yeom et al. 2021, "Pruning by explaining", arXiv 1912.08881).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skcompress.calibration import Batch, Batches, fold, following, observer
from skcompress.calibration.outputs import Form, checked_rows, form_of
from skcompress.compressors.calibrated import foldable_norms

from .errors import LabelError
from .gates import gate_gradients
from .groups import ChannelGroup
from .removing import mixes

# What cross-entropy of torch passes over.
_IGNORED = -100


def taylor_scores(
    model: nn.Module, groups: Sequence[ChannelGroup], data: Batches, seed: int
) -> dict[str, Tensor]:
    """Mean squared change of the log-likelihood by each unit, float64 (units,), by group."""
    draws = torch.Generator().manual_seed(seed)
    form: list[Form] = []

    def goal(result: Any, batch: Batch, number: int) -> Tensor:
        rows = _rows(form, result, batch, number, data.owner)
        labels = batch.labels
        if form[0].axis is None:
            wanted = torch.randn(rows.shape, generator=draws).to(rows)
            if labels is not None and labels.is_floating_point():
                wanted = _values(labels, rows, number, data.owner) - rows.detach()
            return (rows * wanted).sum()
        chances = rows.log_softmax(-1)
        if labels is None:
            p = chances.detach().double().exp().cpu()
            labels = torch.multinomial(p, 1, generator=draws)[:, 0].to(rows.device)
        index, counts = _classes(labels, rows, number, data.owner)
        return (chances.gather(1, index[:, None])[:, 0] * counts).sum()

    return _averaged(observer(model), groups, data, goal, torch.square)


def relevance_scores(
    model: nn.Module, groups: Sequence[ChannelGroup], data: Batches
) -> dict[str, Tensor]:
    """Mean relevance of each unit, float64 (units,), by group."""
    names = [name for name, layer in model.named_modules() if mixes(layer)]
    norms = foldable_norms(model, following(model, names, data))
    # Relevance is divided by contributions, and a normalisation in between has none of its own.
    network = observer(fold(model, norms) if norms else model)
    for layer in network.modules():
        if mixes(layer):
            layer.forward = _relevant(layer, layer.forward)  # type: ignore[method-assign]
    form: list[Form] = []

    def goal(result: Any, batch: Batch, number: int) -> Tensor:
        rows = _rows(form, result, batch, number, data.owner)
        if form[0].axis is None:
            return (rows * rows.detach().sign()).sum()
        labels = rows.detach().argmax(1) if batch.labels is None else batch.labels
        index, counts = _classes(labels, rows, number, data.owner)
        return (rows.gather(1, index[:, None])[:, 0] * counts).sum()

    return _averaged(network, groups, data, goal, lambda relevance: relevance)


def _averaged(
    network: nn.Module,
    groups: Sequence[ChannelGroup],
    data: Batches,
    goal: Callable[[Any, Batch, int], Tensor],
    score: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    totals: dict[str, Tensor] = {}
    weight = 0.0
    for batch, slopes in gate_gradients(network, groups, data, goal):
        n = next(iter(slopes.values())).shape[0] if slopes else 0
        weights = torch.ones(n) if batch.weights is None else batch.weights
        weight += float(weights.sum())
        for name, slope in slopes.items():
            # Rows that cannot be told apart by samples count alike.
            by_row = weights.to(slope) if len(weights) == len(slope) else slope.new_ones(len(slope))
            part = (by_row[:, None] * score(slope)).double().sum(0).cpu()
            totals[name] = totals[name] + part if name in totals else part
    return {name: total / (weight or 1.0) for name, total in totals.items()}


def _relevant(layer: nn.Module, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Give what a layer gives, with a derivative by which inputs share out what comes of them.

    By activation times gradient, each input gets of an output's relevance the share that its
    positive contribution has in the sum of all positive ones; biases get none.
    """

    def given(weight: Tensor, x: Tensor) -> Tensor:
        own = dict(layer._parameters)
        layer._parameters.update({"weight": weight, "bias": None})  # type: ignore[dict-item]
        try:
            return forward(x)
        finally:
            layer._parameters.update(own)

    def relevant(x: Tensor) -> Tensor:
        value = forward(x).detach()
        weight = layer.weight.detach()  # type: ignore[operator, union-attr]
        positive = given(weight.clamp(min=0), x.clamp(min=0))
        positive = positive + given(weight.clamp(max=0), x.clamp(max=0))
        whole = positive.detach()
        share = torch.where(whole > 0, value / whole.clamp(min=1e-12), 0.0)
        return value + (positive - whole) * share

    return relevant


def _rows(form: list[Form], result: Any, batch: Batch, number: int, owner: str) -> Tensor:
    if not form:
        form.append(form_of(result, batch))
    return checked_rows(form[0], result, batch, number, owner)


def _classes(labels: Tensor, rows: Tensor, number: int, owner: str) -> tuple[Tensor, Tensor]:
    """Give the class of each row, and how much it counts: nothing where torch would ignore it."""
    flat = labels.reshape(-1)
    if flat.is_floating_point() or len(flat) != len(rows):
        received = f"{flat.dtype} of shape {tuple(labels.shape)}"
        why = f"batch {number} has labels of {received} for {len(rows)} distributions over classes"
        raise LabelError(owner, why)
    counts = flat != _IGNORED
    if bool(((flat < 0) | (flat >= rows.shape[1]))[counts].any()):
        why = f"batch {number} has labels outside 0..{rows.shape[1] - 1}"
        raise LabelError(owner, why)
    return flat.long().clamp(min=0), counts.to(rows)


def _values(labels: Tensor, rows: Tensor, number: int, owner: str) -> Tensor:
    if labels.numel() != rows.numel():
        why = f"batch {number} has targets of shape {tuple(labels.shape)} for {tuple(rows.shape)}"
        raise LabelError(owner, f"{why} outputs")
    return labels.reshape(rows.shape).to(rows)
