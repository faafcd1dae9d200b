"""How many channels go, and of which groups: what is left is counted, not estimated.

A convolution or linear layer with o outputs and i inputs has a o i + b o numbers, and does as
many operations up to other constants; so has everything that stands between them with a = 0. All
units of all groups are put in one order; how much is left after each of them is a sum over layers,
and never grows along the order: the budget is met by the first place where it is small enough.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn
from torch_pruning import ops
from torch_pruning.pruner.function import PrunerBox

from skcompress.building import Batch, observe
from skcompress.metrics import flop_counter

from .errors import RatioError
from .groups import ChannelGroup
from .removing import mixes


@dataclass(frozen=True)
class LayerCost:
    """Cost of a layer with o outputs and i inputs: product * o * i + vector * o."""

    outputs: int
    inputs: int
    product: float
    vector: float

    @property
    def whole(self) -> float:
        """What it is before anything goes."""
        return self.product * self.outputs * self.inputs + self.vector * self.outputs


@dataclass(frozen=True)
class Ranking:
    """Units of one group in the order in which they go.

    order : numbers of units, each once
    scores : (units,), what the loss of each costs, in this order; never falling
    """

    order: Sequence[int]
    scores: np.ndarray


@dataclass(frozen=True)
class _Step:
    """Units that go at once: one, or as many as rounding asks for."""

    group: str
    units: tuple[int, ...]
    score: float


def parameter_costs(model: nn.Module, groups: Sequence[ChannelGroup]) -> dict[str, LayerCost]:
    """Count stored numbers of all layers whose channels may go."""
    costs = {}
    for name in _layers(groups):
        layer = model.get_submodule(name)
        n_out, n_in = _channels(layer)
        weight = layer._parameters["weight"].numel() if mixes(layer) else 0  # type: ignore[union-attr]
        rest = sum(p.numel() for p in layer.parameters(recurse=False)) - weight
        costs[name] = LayerCost(n_out, n_in, weight / (n_out * n_in), rest / n_out)
    return costs


def flop_costs(
    model: nn.Module, groups: Sequence[ChannelGroup], batch: Batch
) -> tuple[dict[str, LayerCost], int]:
    """Count the operations of one forward: of layers whose channels may go, and of the model."""
    with flop_counter() as counter:
        observe(model, [batch])
    counts, root = counter.get_flop_counts(), type(model).__name__
    costs = {}
    for name in _layers(groups):
        layer = model.get_submodule(name)
        n_out, n_in = _channels(layer)
        found = sum(counts.get(f"{root}.{name}", {}).values())
        product, vector = (found / (n_out * n_in), 0) if mixes(layer) else (0, found / n_out)
        costs[name] = LayerCost(n_out, n_in, product, vector)
    return costs, counter.get_total_flops()


def channel_costs(model: nn.Module, groups: Sequence[ChannelGroup]) -> dict[str, LayerCost]:
    """Count each channel once, at the first layer that gives it."""
    costs = {}
    for group in groups:
        layer = model.get_submodule(group.name)
        costs[group.name] = LayerCost(*_channels(layer), 0.0, 1.0)
    return costs


def _layers(groups: Sequence[ChannelGroup]) -> list[str]:
    return list(dict.fromkeys(m.layer for group in groups for m in group.members))


def _channels(layer: nn.Module) -> tuple[int, int]:
    remover = PrunerBox[ops.module2type(layer)]
    # An activation with one parameter for all channels has none of its own.
    return remover.get_out_channels(layer) or 1, remover.get_in_channels(layer) or 1


def choose(
    groups: Sequence[ChannelGroup],
    rankings: Mapping[str, Ranking],
    costs: Mapping[str, LayerCost],
    ratio: float,
    total: float,
    unit: str,
    *,
    min_kept: float,
    round_to: int | None,
    uniform: bool,
) -> dict[str, tuple[int, ...]]:
    """Choose the units of each group that go, so that `ratio` of `total` goes, and little more.

    costs : of the layers whose channels may go; total : with what stays as it is
    min_kept : of each group's units, a share below 1, or a number
    round_to : what the number of kept channels is to be a multiple of, where any go
    uniform : the same share of every group; otherwise those of least score, wherever they are
    """
    steps: list[_Step] = []
    for group in groups:
        steps += _steps(group, rankings[group.name], min_kept, round_to)
    layers = list(costs)
    changes = np.zeros((len(steps), 2, len(layers)))
    by_name = {group.name: group for group in groups}
    column = {name: n for n, name in enumerate(layers)}
    for n, step in enumerate(steps):
        group = by_name[step.group]
        for member in group.members:
            if member.layer in column:
                lost = sum(len(group.places(member, u)) for u in step.units)
                changes[n, int(not member.outputs), column[member.layer]] += lost
    product = np.array([costs[name].product for name in layers])
    vector = np.array([costs[name].vector for name in layers])
    sizes = np.array([[costs[n].outputs for n in layers], [costs[n].inputs for n in layers]])

    def cost(removed: np.ndarray) -> np.ndarray:
        out, read = (sizes - removed).swapaxes(0, -2)
        return (product * out * read + vector * out).sum(-1)  # type: ignore[no-any-return]

    dense = cost(np.zeros((1, 2, len(layers))))[0]
    keys = _shares(steps, by_name) if uniform else np.array([step.score for step in steps])
    order = np.argsort(keys, kind="stable")
    left = np.append(dense, cost(changes[order].cumsum(0)))
    # Counts are whole numbers: what rounding leaves of them is not to cost a channel.
    reached = left <= dense - ratio * total + 1e-6
    if not reached.any():
        raise RatioError(ratio, (dense - left[-1]) / total, unit)
    gone: dict[str, tuple[int, ...]] = {group.name: () for group in groups}
    for n in order[: int(reached.argmax())]:
        gone[steps[n].group] += steps[n].units
    return {name: tuple(sorted(units)) for name, units in gone.items()}


def _steps(
    group: ChannelGroup, ranking: Ranking, min_kept: float, round_to: int | None
) -> list[_Step]:
    n = len(group.units)
    least = max(1, min_kept if min_kept >= 1 else int(np.ceil(min_kept * n)))
    width = len(group.units[0])
    # So many units have a number of channels that is a multiple.
    multiple = 1 if round_to is None else round_to // int(np.gcd(round_to, width))
    steps: list[_Step] = []
    waiting: list[int] = []
    for place, unit in enumerate(ranking.order):
        waiting.append(unit)
        kept = n - place - 1
        if kept < least:
            break
        if kept % multiple == 0:
            steps.append(_Step(group.name, tuple(waiting), float(ranking.scores[place])))
            waiting = []
    return steps


def _shares(steps: Sequence[_Step], groups: Mapping[str, ChannelGroup]) -> np.ndarray:
    """What share of its group is gone after each step."""
    gone: dict[str, int] = {}
    shares = []
    for step in steps:
        gone[step.group] = gone.get(step.group, 0) + len(step.units)
        shares.append(gone[step.group] / len(groups[step.group].units))
    return np.array(shares)
