"""How much the outputs change with each channel: gates of size 1, differentiated sample by sample.

Every layer that reads the channels of a group gets them times a gate, one number for each sample
and unit. The derivative of a goal by the gate is, to first order, what the goal loses when the
unit goes for this sample: the sum over positions of activation times gradient. Where the goal is
the log-likelihood of the labels, the mean of its square is the Fisher information of the gate;
where it is the score of a class, and layers hand relevance back by a rule, it is the relevance that
flows through the unit.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skcompress.building import (
    Batch,
    Batches,
    Differentiating,
    Form,
    fold,
    foldable_norms,
    n_samples,
    observe,
    score,
    set_rule,
)

from .errors import LabelError
from .groups import ChannelGroup
from .removing import mixes

# From rows of outputs, how they are read, and the class of each row (None where it is not known),
# to what is to be differentiated: the sum of the rows times this.
Direction = Callable[[Tensor, Form, Tensor | None], Tensor]


def fisher(
    model: nn.Module, groups: Sequence[ChannelGroup], data: Batches, seed: int
) -> dict[str, Tensor]:
    """Mean squared change of the log-likelihood by each unit, float64 (units,), by group."""
    draws = torch.Generator().manual_seed(seed)

    def direction(rows: Tensor, form: Form, classes: Tensor | None) -> Tensor:
        if classes is None:
            return score(rows, form, "labels", draws)
        return _ones(rows, classes) - rows.softmax(-1)

    gates = GateGradients(groups, direction, power=2)
    observe(model, data, gates, title="fisher", gradients=True)
    return gates.means


def relevance(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    data: Batches,
    norms: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Mean relevance of each unit, float64 (units,), by group; rule alpha = 1, beta = 0.

    norms : normalisations that follow layers, as the structure of the model has them
    """

    def direction(rows: Tensor, form: Form, classes: Tensor | None) -> Tensor:
        if form.axis is None:
            return rows.sign()
        return _ones(rows, rows.argmax(1) if classes is None else classes)

    gates = GateGradients(groups, direction, rule="positive")
    # Otherwise the shift of a normalisation takes relevance that is due to channels.
    folded = fold(model, foldable_norms(model, norms))
    observe(folded, data, gates, title="relevance", gradients=True)
    return gates.means


def _ones(rows: Tensor, classes: Tensor) -> Tensor:
    return torch.zeros_like(rows).scatter_(1, classes[:, None], 1.0)


class GateGradients(Differentiating):
    """Derivatives of a goal by the gates of all groups, and their means over samples.

    power : of the derivatives, before the mean
    rule : by which layers that mix channels hand relevance back; None for plain gradients
    """

    def __init__(
        self,
        groups: Sequence[ChannelGroup],
        direction: Direction,
        *,
        power: int = 1,
        rule: str | None = None,
    ):
        super().__init__()
        self._groups, self._direction = groups, direction
        self._power, self._rule = power, rule
        self._gates: dict[str, list[Tensor]] = defaultdict(list)
        self._depth: Counter[str] = Counter()
        self._totals: dict[str, Tensor] = {}
        self._weight = 0.0

    @property
    def means(self) -> dict[str, Tensor]:
        """Weighted means, float64 (units,), by the name of the group."""
        return {name: total / (self._weight or 1.0) for name, total in self._totals.items()}

    def attach(self, network: nn.Module) -> None:  # type: ignore[override]
        super().attach(network)
        if self._rule is not None:
            for layer in network.modules():
                if mixes(layer):
                    set_rule(layer, self._rule)
        for name in dict.fromkeys(m.layer for group in self._groups for m in group.readers):
            layer = network.get_submodule(name)
            layer.register_forward_pre_hook(self._gate(name), with_kwargs=True)
            layer.register_forward_hook(self._leave(name))

    def before(self, batch: Batch) -> None:
        self._gates.clear()
        self._depth.clear()

    def _gate(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            self._depth[name] += 1
            # Rules of relevance call the layer again with what has passed the gate.
            if self._depth[name] > 1:
                return None
            x = args[0] if args else kwargs["input"]
            axis = -1 if isinstance(module, nn.Linear) else 1
            factors = torch.ones(len(x), x.shape[axis], dtype=x.dtype, device=x.device)
            factors.requires_grad_(True)
            self._gates[name].append(factors)
            shape = [1] * x.dim()
            shape[0], shape[axis] = factors.shape
            return (x * factors.reshape(shape), *args[1:]), {}

        return hook

    def _leave(self, name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self._depth[name] -= 1

        return hook

    def differentiate(self, batch: Batch, rows: Tensor, form: Form) -> None:
        """Differentiate by the gates, and add the values of the derivatives up."""
        flat = [(name, factors) for name, found in self._gates.items() for factors in found]
        if not flat:
            return
        direction = self._direction(rows.detach(), form, _classes(form, rows, batch))
        total = (rows * direction).sum()
        slopes = torch.autograd.grad(total, [f for _, f in flat], allow_unused=True)
        n = n_samples(batch)
        by_layer: dict[str, Tensor] = {}
        for (name, _), slope in zip(flat, slopes, strict=True):
            if slope is not None:
                part = _by_sample(slope.float(), n)
                by_layer[name] = by_layer[name] + part if name in by_layer else part
        self._add(batch, by_unit(self._groups, by_layer))

    def _add(self, batch: Batch, slopes: dict[str, Tensor]) -> None:
        n = max((len(slope) for slope in slopes.values()), default=0)
        weights = torch.ones(n) if batch.weights is None else batch.weights
        self._weight += float(weights.sum())
        for name, slope in slopes.items():
            # Rows that cannot be told apart by samples count alike.
            by_row = weights.to(slope) if len(weights) == len(slope) else slope.new_ones(len(slope))
            part = (by_row[:, None] * slope.pow(self._power)).double().sum(0).cpu()
            self._totals[name] = self._totals[name] + part if name in self._totals else part


def _by_sample(slope: Tensor, n: int) -> Tensor:
    """Add up rows (rows, channels) that a forward made of the same sample."""
    return slope.reshape(n, -1, slope.shape[1]).sum(1) if len(slope) % n == 0 else slope


def by_unit(groups: Sequence[ChannelGroup], by_layer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From derivatives (samples, inputs) by layer to (samples, units) by group."""
    found = {}
    for group in groups:
        total: Tensor | None = None
        for member in group.readers:
            slope = by_layer.get(member.layer)
            if slope is None:
                continue
            units = [group.places(member, unit) for unit in range(len(group.units))]
            owner = torch.tensor([u for u, places in enumerate(units) for _ in places])
            index = torch.tensor([place for places in units for place in places])
            part = torch.zeros(len(slope), len(units), device=slope.device)
            part.index_add_(1, owner.to(slope.device), slope[:, index.to(slope.device)])
            total = part if total is None else total + part
        if total is not None:
            found[group.name] = total
    return found


def _classes(form: Form, rows: Tensor, batch: Batch) -> Tensor | None:
    """Class of each row; None where outputs are no distributions, or the data does not say it."""
    if form.axis is None or batch.labels is None:
        return None
    # One class for each sample says nothing about each position of a sequence.
    if len(batch.labels) != len(rows):
        return None
    if bool(((batch.labels < 0) | (batch.labels >= rows.shape[1])).any()):
        why = f"batch {batch.number} of its data has labels outside 0..{rows.shape[1] - 1}"
        raise LabelError(batch.owner, why)
    return batch.labels
