"""What weights of a recurrence give together in one network, and are given in another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..layers import Slot
from ..network.batches import Batch
from ..protocols import Preactivation, Rows, Unrolled
from .anchored import Anchored, AnchoredSum


def columns(z: Preactivation, module: nn.Module) -> dict[str, Tensor]:
    """Which of all inputs of `z`, side by side, are those of each weight."""
    found, start = {}, 0
    for slot in z.rows:
        n = getattr(module, slot).shape[1]
        found[slot] = torch.arange(start, start + n)
        start += n
    return found


def joint_weight(z: Preactivation, module: nn.Module) -> Tensor:
    """Weight (n_rows, inputs) that gives `z` from all its inputs side by side."""
    parts = {slot: getattr(module, slot).detach() for slot in z.rows}
    like = next(iter(parts.values()))
    joint = torch.zeros(
        z.n_rows,
        sum(part.shape[1] for part in parts.values()),
        dtype=torch.promote_types(like.dtype, torch.float32),
        device=like.device,
    )
    places = columns(z, module)
    for slot, part in parts.items():
        joint[z.rows[slot][:, None], places[slot]] = part.to(joint)
    return joint


def anchored_together(
    z: Preactivation,
    module: nn.Module,
    before: Sequence[Unrolled],
    after: Sequence[Unrolled],
    batches: Sequence[Batch],
    max_positions: int | None,
    generator: torch.Generator,
) -> Anchored:
    """Moments of `z` in an original with all its inputs, side by side, in its successor.

    module : of the original; before, after : runs of both on the same batches
    max_positions : of one batch, how many are used at most
    """
    joint = joint_weight(z, module)[None]
    total = AnchoredSum(Slot("", 1, lambda: joint, ()), max_positions, generator)
    for batch, old, new in zip(batches, before, after, strict=True):
        inputs = _side_by_side(z, new)
        given = _side_by_side(z, old)
        # Sequences of other lengths have no goals but what the weights give on the new ones.
        same = len(given) == len(inputs)
        total.add(given if same else inputs, inputs, batch.mask, batch.weights)
    return total.result()


def _side_by_side(z: Preactivation, run: Unrolled) -> Rows:
    parts = [run.inputs[slot] for slot in z.rows]
    return replace(parts[0], x=torch.cat([part.x for part in parts], dim=1))


def state_error(
    before: Sequence[Unrolled], after: Sequence[Unrolled], batches: Sequence[Batch]
) -> float:
    """Sum of the squared differences of all states of two runs, at the steps that count."""
    total = 0.0
    for batch, old, new in zip(batches, before, after, strict=True):
        if old.states.x.shape == new.states.x.shape:
            total += _summed(new.states, new.states.x - old.states.x, batch)
    return total


def state_energy(runs: Sequence[Unrolled], batches: Sequence[Batch]) -> float:
    """Sum of the squared differences of all states from their mean, at the steps that count."""
    mean = torch.cat([run.states.x for run in runs]).mean(0)
    pairs = zip(runs, batches, strict=True)
    return sum(_summed(run.states, run.states.x - mean, batch) for run, batch in pairs)


def _summed(states: Rows, values: Tensor, batch: Batch) -> float:
    """Sum of the squares of values at the positions of states."""
    squares = values.to(torch.float64).square().sum(1)
    weights = None if batch.weights is None else states.spread(batch.weights)
    if weights is not None:
        squares = squares * weights.to(squares)
    index = states.kept(batch.mask)
    return float((squares if index is None else squares[index]).sum())
