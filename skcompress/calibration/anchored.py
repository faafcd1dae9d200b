"""Two networks on the same data: what a layer gave in the one, and is given in the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..factorized import Slot
from ..factorized.inputs import Inputs
from .batches import Batch, Batches, device_of
from .borrowed import same_randomness
from .collect import forward, slot_inputs
from .precision import full_precision
from .statistics import piece_size

Calls = list[dict[str, Inputs]]


@dataclass(frozen=True)
class Anchored:
    """Moments of outputs y = W x of an original layer with inputs x' of its successor.

    gram : (groups, n, n), E[x' x'^T]; cross : (groups, out, n), E[y x'^T]
    energy : (groups,), E[|y|^2]
    inputs : (groups, n), E[x']; outputs : (groups, out), E[y]; all float64
    """

    gram: Tensor
    cross: Tensor
    energy: Tensor
    inputs: Tensor
    outputs: Tensor

    def centred(self) -> Anchored:
        """Take the means off, for a layer whose bias makes up for them."""
        return Anchored(
            self.gram - self.inputs[:, :, None] * self.inputs[:, None],
            self.cross - self.outputs[:, :, None] * self.inputs[:, None],
            self.energy - self.outputs.square().sum(1),
            self.inputs,
            self.outputs,
        )


class _Reached(BaseException):
    """The layer that is watched has been called; the rest of the forward is not needed.

    Not an Exception: a forward that catches these would swallow it.
    """


def calls_in_order(model: nn.Module, names: Iterable[str], data: Batches) -> dict[str, int]:
    """How often each of the named modules is called on the first batch, in order of execution."""
    counts: Counter[str] = Counter()

    def note(name: str) -> Any:
        return lambda *_: counts.update([name])

    hooks = [model.get_submodule(n).register_forward_hook(note(n)) for n in names]
    try:
        with same_randomness(device_of(model)), torch.no_grad():
            forward(model, 0, next(iter(data)), data.owner)
    finally:
        for hook in hooks:
            hook.remove()
    return dict(counts)


def anchored(
    original: nn.Module,
    successor: nn.Module,
    name: str,
    n_calls: int,
    slots: Mapping[str, Slot],
    data: Batches,
) -> dict[str, Anchored]:
    """Collect, for some weights of one module, what it is given and what it is to give.

    original, successor : observed copies; the module is of its original kind in both
    n_calls : how often it is called in one forward
    slots : the weights asked for, by name

    Where the two do not see the same number of inputs, as experts may not to whom other
    tokens are sent, the goal is what the original weight would give on the new inputs.
    """
    sums: dict[str, _AnchoredSum] = {}
    with same_randomness(device_of(original)), torch.no_grad():
        for number, batch in enumerate(data):
            pair = [
                _calls(model, name, n_calls, slots, number, batch, data.owner)
                for model in (original, successor)
            ]
            for before, after in zip(*_matching(*pair), strict=True):
                for slot, inputs in after.items():
                    if slot not in sums:
                        sums[slot] = _AnchoredSum(slots[slot])
                    sums[slot].add(before[slot], inputs, batch.mask)
    return {slot: found.result() for slot, found in sums.items()}


def _matching(before: Calls, after: Calls) -> tuple[Calls, Calls]:
    same = len(before) == len(after) and all(
        b.keys() == a.keys() and all(len(b[slot]) == len(a[slot]) for slot in a)
        for b, a in zip(before, after, strict=True)
    )
    return (before if same else after), after


def _calls(
    model: nn.Module,
    name: str,
    n_calls: int,
    slots: Mapping[str, Slot],
    number: int,
    batch: Batch,
    owner: str,
) -> Calls:
    """Inputs of the module in each of its calls in one forward, which goes no further."""
    found: Calls = []

    def watch(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        inputs = slot_inputs(module, args, kwargs, slots.keys())
        found.append({slot: i for slot, i in inputs if isinstance(i, Inputs)})
        if len(found) == n_calls:
            raise _Reached

    hook = model.get_submodule(name).register_forward_hook(watch, with_kwargs=True)
    try:
        forward(model, number, batch, owner)
    except _Reached:
        pass
    finally:
        hook.remove()
    return found


class _AnchoredSum:
    """Sums over calls: in float32 within a piece of positions, in float64 over pieces."""

    def __init__(self, slot: Slot):
        weight = slot.read().detach().flatten(2)
        self._weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
        groups, out, n = weight.shape
        like: dict[str, Any] = {"device": weight.device, "dtype": torch.float64}
        self._sums = (
            torch.zeros(groups, n, n, **like),
            torch.zeros(groups, out, n, **like),
            torch.zeros(groups, **like),
            torch.zeros(groups, n, **like),
            torch.zeros(groups, out, **like),
        )
        self._count = torch.zeros(groups, **like)

    def add(self, before: Inputs, after: Inputs, mask: Tensor | None) -> None:
        index = after.kept(mask)
        device = self._weight.device
        size = piece_size(device)
        of = slice(None) if after.group is None else slice(after.group, after.group + 1)
        weight = self._weight[of]
        pairs = zip(before.columns(index, size), after.columns(index, size), strict=True)
        with torch.autocast(device.type, enabled=False), full_precision():
            for x, raw in pairs:
                y, new = weight @ x.to(weight.dtype), raw.to(weight.dtype)
                parts = (new @ new.mT, y @ new.mT, y.square().sum((1, 2)), new.sum(2), y.sum(2))
                for total, part in zip(self._sums, parts, strict=True):
                    total[of] += part
                self._count[of] += new.shape[2]

    def result(self) -> Anchored:
        count = self._count.clamp(min=1)
        gram, cross, energy, inputs, outputs = self._sums
        by_row, by_matrix = count[:, None], count[:, None, None]
        return Anchored(
            gram / by_matrix, cross / by_matrix, energy / count, inputs / by_row, outputs / by_row
        )
