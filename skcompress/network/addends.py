"""What the outputs of layers are added to, as at the end of a residual block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .batches import Batches, device_of
from .normalization import Normalization
from .observing import forward, observer, same_randomness
from .readers import Readers, tensors_in

# A channel that is multiplied by less, relative to the largest, cannot make up for anything.
_LEAST = 1e-3
_ADD = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


@dataclass(frozen=True)
class Place:
    """Where a tensor passes: given to a module as its first argument, or given by it."""

    module: str
    output: bool


@dataclass(frozen=True)
class Addend:
    """The other term of the sum that alone reads the outputs of a layer.

    place : where it passes before the layer is called
    scale : float64 (out,), what the outputs are multiplied by before; None for nothing
    """

    place: Place
    scale: Tensor | None

    def missing(self, before: Tensor, now: Tensor) -> Tensor:
        """What outputs (batch, out, ...) have to make up for, when the addend has changed.

        Where nothing is in between, of any shape.
        """
        gap = before - now
        if self.scale is None:
            return gap
        scale = self.scale.to(gap)
        usable = scale.abs() >= _LEAST * scale.abs().max()
        factor = torch.where(usable & (scale != 0), scale, torch.inf).reciprocal()
        return gap * factor.reshape(-1, *(1,) * (gap.dim() - 2))


class _Sums(Readers):
    """Notes, of the tensors it watches, what each is added to.

    places : (time, place) of the tensors that pass there, as long as they live
    added : those of the other term, by the id of the one watched
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: Any = WeakIdKeyDictionary()
        self.added: dict[int, list[tuple[int, Place]]] = {}
        self._sums: list[Tensor] = []  # held, for their ids

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ADD and not kwargs and isinstance(args[1], Tensor):
            for one, other in (args, args[::-1]):
                if id(one) in self.watched and one.shape == other.shape:
                    self.added[id(one)] = list(self.places.get(other, ()))
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func is torch.ops.aten.add_.Tensor and id(args[0]) in self.added:
            # Whoever reads it from now on reads the sum.
            self._sums.append(self.watched.pop(id(args[0]), args[0]))
        return result


def addends(
    model: nn.Module, names: Iterable[str], norms: Mapping[str, Normalization], data: Batches
) -> dict[str, Addend]:
    """Find, for each named layer, what its outputs are added to where nothing else reads them.

    norms : of layers that have one, the batch normalisation in between

    Observed on the first batch. The addend has to be the first argument or the output of some
    module before the layer is called, as the input of a residual block is; the layer and that
    module are called once. Layers of which nothing such is to be seen are left out.
    """
    observed, sums = observer(model), _Sums()
    ends = {norms[name].name if name in norms else name: name for name in names}
    calls: Counter[str] = Counter()
    called: dict[str, int] = {}  # when; the time is how many calls there were
    outputs: dict[str, Tensor] = {}

    def note(value: Any, place: Place) -> None:
        if isinstance(value, Tensor):
            sums.places.setdefault(value, []).append((calls.total(), place))

    def before(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            calls[name] += 1
            called[name] = calls.total()
            note(args[0] if args else None, Place(name, False))

        return hook

    def after(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            note(output, Place(name, True))
            if name in ends and isinstance(output, Tensor):
                outputs[ends[name]] = output
                sums.watch(output)

        return hook

    for name, module in observed.named_modules():
        module.register_forward_pre_hook(before(name))
        module.register_forward_hook(after(name))
    with same_randomness(device_of(observed)), torch.no_grad(), sums:
        result = forward(observed, 0, next(iter(data)), data.owner)
    sums.counts.update(map(id, tensors_in(result)))
    found = {}
    for name, output in outputs.items():
        places = [
            place
            for time, place in sums.added.get(id(output), ())
            if time <= called[name] and calls[place.module] == 1
        ]
        if places and calls[name] == 1 == sums.counts[id(output)]:
            found[name] = Addend(places[0], norms[name].scale if name in norms else None)
    return found
