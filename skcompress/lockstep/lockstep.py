"""Two networks on the same data, layer by layer: every forward runs once and waits its turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import Slot, kind_of
from ..network.batches import Batch
from ..network.observing import forward, observer
from ..network.structure import Structure
from ..protocols import Inputs
from ..statistics.collecting import slot_inputs
from ..statistics.passes import Positions, generator, positions_of
from .anchored import Anchored, AnchoredSum, InputsBySlot
from .order import calls_in_order
from .paused import Call, PausedForward, PausingNetwork


class Lockstep:
    """The forwards of an original network and of its successor on all batches at once.

    model : the original; names : of the layers that the forwards stop before, each of which
    may then be replaced in the successor
    max_positions, seed : as for `stream`
    structure : of the model. Layers whose outputs are added to something, as at the end of a
        residual block, make up for what has become of it (He, Zhang & Sun 2017, arXiv 1707.06168)

    Iterating gives the names of the layers that the data reaches, in the order of execution; all
    forwards that get there then stand before that layer. Memory: the batches, and what two
    forwards hold at one place, for all batches together.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Iterable[str],
        data: Iterable[Batch],
        structure: Structure,
        *,
        max_positions: Positions = None,
        seed: int = 0,
    ):
        self._max_positions, self._seed = max_positions, seed
        self._pristine = observer(model)
        names = list(names)
        self._batches = list(data)
        self._calls = calls_in_order(self._pristine, names, self._batches, structure.calls)
        self._original = PausingNetwork(observer(model), names)
        self._successor = PausingNetwork(observer(model), names)
        self._addends = {n: addend for n, addend in structure.addends.items() if n in self._calls}
        self._uses = Counter(addend.place for addend in self._addends.values())
        for place in self._uses:
            self._original.keep(place)
            self._successor.keep(place)
        self._pairs = [
            (PausedForward(self._original, batch), PausedForward(self._successor, batch))
            for batch in self._batches
        ]

    def __len__(self) -> int:
        """Give the number of layers that the data reaches in the original."""
        return len(self._calls)

    def __iter__(self) -> Iterator[str]:
        order, passed = list(self._calls), set[str]()
        forwards = [paused for pair in self._pairs for paused in pair]
        try:
            self._advance(forwards, order, -1, passed)
            for place, name in enumerate(order):  # which grows meanwhile
                passed.add(name)
                here = [paused for paused in forwards if paused.at == name]
                if here:
                    yield name
                    self._advance(here, order, place, passed)
        finally:
            for paused in forwards:
                paused.leave()

    @staticmethod
    def _advance(
        forwards: list[PausedForward], order: list[str], place: int, passed: set[str]
    ) -> None:
        """Let forwards go on from a place in the order."""
        for paused in forwards:
            paused.advance()
            # Layers that this batch meets in another order than the others are done with.
            while paused.at in passed:
                paused.advance()
            # Only the successor may send a batch to a layer such as this.
            if paused.at is not None and paused.at not in order[place + 1 :]:
                order.insert(place + 1, paused.at)

    def pristine(self, name: str) -> nn.Module:
        """Give a layer as it is in the original, in eval mode, without what watches it."""
        return self._pristine.get_submodule(name)

    def successor(self, name: str) -> nn.Module:
        """Give a module of the successor; its buffers, and what was put there, may be changed."""
        return self._successor.module(name)

    def replace(self, name: str, replacement: nn.Module) -> None:
        """Put another module in the place of a layer of the successor."""
        self._successor.replace(name, replacement)

    def anchored(
        self,
        name: str,
        slots: Mapping[str, Slot],
        roots: Mapping[str, Sequence[Tensor | None]] = MappingProxyType({}),
    ) -> dict[str, Anchored]:
        """Collect, for weights of the layer stood before, what it is given and is to give.

        slots : the weights asked for, by name; roots : of them, see `Anchored`

        Where the two networks do not see the same number of inputs, as experts may not to whom
        other tokens are sent, the goal is what the original weight would give on the new ones.
        """
        sums = {
            slot: AnchoredSum(
                found,
                positions_of(self._max_positions, found),
                generator(self._seed, f"{name}.{slot}".rstrip(".")),
                roots.get(slot),
            )
            for slot, found in slots.items()
        }
        several = self._calls.get(name, 1) > 1
        pairs = self._again(name, slots) if several else self._standing(name, slots)
        for (batch, before, after), pair in zip(pairs, self._pairs, strict=True):
            goals = before if len(before) == len(after) else after
            missing = self._missing(name, *pair)
            for old, new in zip(goals, after, strict=True):
                for slot in sums.keys() & new.keys():
                    same = slot in old and _same_places(old[slot], new[slot])
                    sums[slot].add(
                        old[slot] if same else new[slot],
                        new[slot],
                        batch.mask,
                        batch.weights,
                        missing.get(slot) if same else None,
                    )
        self._let_go(name)
        return {slot: found.result() for slot, found in sums.items() if found.reached}

    def calls(self, name: str) -> list[tuple[Batch, Call, Call]]:
        """Arguments of the call stood before, positional and by keyword, in both networks.

        Of the batches that reach the layer in both; none where forwards call it several times.
        """
        if self._calls.get(name, 1) > 1:
            return []
        return [
            (batch, original.call, successor.call)
            for batch, (original, successor) in zip(self._batches, self._pairs, strict=True)
            if original.at == successor.at == name
        ]

    def _missing(
        self, name: str, original: PausedForward, successor: PausedForward
    ) -> dict[str, Tensor]:
        """What the outputs of a layer are to give besides, (groups, out, positions) by slot."""
        addend = self._addends.get(name)
        if addend is None:
            return {}
        before, now = (paused.kept.get(addend.place) for paused in (original, successor))
        if before is None or now is None or before.shape != now.shape:
            return {}
        module = self.pristine(name)
        kind = kind_of(module)
        assert kind is not None
        gap = addend.missing(before, now)
        return {
            slot: torch.cat(list(outputs.columns(None, gap.numel())), dim=2)
            for slot, outputs in kind.outputs(module, gap).items()
        }

    def _let_go(self, name: str) -> None:
        """Forget what only the outputs of this layer are added to."""
        addend = self._addends.pop(name, None)
        if addend is None:
            return
        self._uses[addend.place] -= 1
        if not self._uses[addend.place]:
            for paused in chain.from_iterable(self._pairs):
                paused.kept.pop(addend.place, None)

    def _standing(
        self, name: str, slots: Mapping[str, Slot]
    ) -> Iterator[tuple[Batch, list[InputsBySlot], list[InputsBySlot]]]:
        module = self.pristine(name)
        for batch, pair in zip(self._batches, self._pairs, strict=True):
            before, after = (
                [_inputs(module, *paused.call, slots)] if paused.at == name else []
                for paused in pair
            )
            yield batch, before, after

    def _again(
        self, name: str, slots: Mapping[str, Slot]
    ) -> Iterator[tuple[Batch, list[InputsBySlot], list[InputsBySlot]]]:
        """Run everything anew for a layer that is called several times in one forward.

        What it is given the second time depends on what it gave the first time, when it has
        still to be fitted: it is the original there, for the network fitted so far.
        """
        networks = self._original.model, self._successor.model
        n_calls = self._calls[name]
        for batch in self._batches:
            before, after = (
                _all_calls(network, name, n_calls, slots, batch) for network in networks
            )
            yield batch, before, after


class _Reached(BaseException):
    """The layer that is watched has been called; the rest of the forward is not needed.

    Not an Exception: a forward that catches these would swallow it.
    """


def _same_places(one: Inputs, other: Inputs) -> bool:
    """Whether inputs of a weight in two networks belong to the same positions."""
    here: Tensor | None = getattr(one, "place", None)
    there: Tensor | None = getattr(other, "place", None)
    if here is not None and there is not None:
        return torch.equal(here, there)
    return len(one) == len(other)


def _inputs(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], slots: Mapping[str, Slot]
) -> InputsBySlot:
    found = slot_inputs(module, args, kwargs, slots.keys())
    return {slot: inputs for slot, inputs in found if isinstance(inputs, Inputs)}


def _all_calls(
    model: nn.Module,
    name: str,
    n_calls: int,
    slots: Mapping[str, Slot],
    batch: Batch,
) -> list[InputsBySlot]:
    """Inputs of a layer in each of its calls in one forward, which goes no further."""
    calls: list[InputsBySlot] = []

    def watch(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        calls.append(_inputs(module, args, kwargs, slots))
        if len(calls) == n_calls:
            raise _Reached

    hook = model.get_submodule(name).register_forward_hook(watch, with_kwargs=True)
    try:
        forward(model, batch)
    except _Reached:
        pass
    finally:
        hook.remove()
    return calls
