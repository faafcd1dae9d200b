"""One look at a network: what follows what in it, as one forward shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakIdKeyDictionary

from .addends import Addend, Place
from .batches import Batch, Batches
from .calls import Call, description, without_values
from .normalization import Normalization, fixed, reads_outputs, scale
from .observing import Reducer, observe
from .readers import Readers
from .weights import Site


@dataclass(frozen=True)
class Structure:
    """What the first batch shows of the layers that were asked for, by their names.

    calls : their calls, without values, in the order of execution; of those that it reaches
    norms : the batch normalisation that alone reads what a layer gives; both are called once
    addends : what the outputs of a layer, or of the normalisation after it, are added to, where
        nothing else reads them. The addend is the first argument or the output of some module
        before the layer is called, as the input of a residual block is.
    """

    calls: Mapping[str, tuple[Call, ...]] = field(default_factory=dict)
    norms: Mapping[str, Normalization] = field(default_factory=dict)
    addends: Mapping[str, Addend] = field(default_factory=dict)

    def without_norms(self, layers: Collection[str]) -> Structure:
        """Give the structure where the normalisations after these layers are folded in."""
        norms = {name: norm for name, norm in self.norms.items() if name not in layers}
        addends = {
            name: replace(addend, scale=None) if name in layers else addend
            for name, addend in self.addends.items()
        }
        return Structure(self.calls, norms, addends)

    def norm_after(self, site: Site) -> Normalization | None:
        """Give the batch normalisation that reads what this weight gives, and nothing else."""
        return self.norms.get(site.users[0][0]) if site.alone else None

    def takes_mean(self, site: Site) -> str | None:
        """Name what can make up for a mean output: the layer, its bias, or the norm after it.

        A bias by its own name, where the layer has several.
        """
        if site.slot.bias is not None and len(site.users) == 1:
            return f"{site.users[0][0]}.{site.slot.bias}".lstrip(".")
        if not site.alone:
            return None
        if site.modules[0]._parameters.get("bias") is not None:
            return site.users[0][0]
        norm = self.norm_after(site)
        return None if norm is None else norm.name


def look(model: nn.Module, names: Iterable[str], data: Batches) -> Structure:
    """Run the first batch, and see how the named layers are connected."""
    readers = Readers()
    watching = _Watching(names, readers)
    with readers:
        observe(model, [next(iter(data))], watching, title="look")
    return watching.result()


def _is_packed(value: object) -> bool:
    return isinstance(value, PackedSequence)


class _Watching(Reducer):
    """Hooks on every module of one forward.

    called : when each module was called; the time is how many calls there were before
    outputs : of the layers asked for and of batch normalisations, which may follow them
    places : (time, place) of every tensor that passes there, as long as it lives
    """

    def __init__(self, names: Iterable[str], readers: Readers):
        self._names, self._readers = dict.fromkeys(names), readers
        self._norms: dict[str, Any] = {}
        self._modules: dict[str, nn.Module] = {}
        self._calls: dict[str, dict[str, Call]] = {}
        self._times: Counter[str] = Counter()
        self._called: dict[str, int] = {}
        self._outputs: dict[str, Tensor] = {}
        self._inputs: dict[str, Tensor] = {}
        self._places: Any = WeakIdKeyDictionary()

    def attach(self, network: nn.Module) -> None:  # type: ignore[override]
        self._modules = dict(network.named_modules())
        self._norms = {
            name: module
            for name, module in self._modules.items()
            if isinstance(module, _BatchNorm) and fixed(module)
        }
        for name, module in self._modules.items():
            module.register_forward_pre_hook(self._before_call(name))
            # First of all hooks: others may change what the layer gives.
            module.register_forward_hook(self._after_call(name), prepend=True, with_kwargs=True)

    def after(self, batch: Batch, output: Any) -> None:  # type: ignore[override]
        self._readers.given_back(output)

    def _before_call(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._times[name] += 1
            self._called[name] = self._times.total()
            if name in self._names:
                self._calls.setdefault(name, {})
            if args:
                self._note(args[0], Place(name, False))
                if name in self._norms and isinstance(args[0], Tensor):
                    self._inputs[name] = args[0]

        return hook

    def _after_call(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._note(output, Place(name, True))
            if name in self._names:
                bare = tree_map(without_values, (args, kwargs), is_leaf=_is_packed)
                self._calls[name].setdefault(description(bare), Call(*bare)).times += 1
            if (name in self._names or name in self._norms) and isinstance(output, Tensor):
                self._outputs[name] = output
                self._readers.watch(output)

        return hook

    def _note(self, value: Any, place: Place) -> None:
        if isinstance(value, Tensor):
            self._places.setdefault(value, []).append((self._times.total(), place))

    def result(self) -> Structure:
        norms = self._following()
        addends = {}
        for name in self._names:
            end = norms[name].name if name in norms else name
            place = self._addend_place(end)
            if place is not None:
                addends[name] = Addend(place, norms[name].scale if name in norms else None)
        calls = {name: tuple(found.values()) for name, found in self._calls.items()}
        return Structure(calls, norms, addends)

    def _following(self) -> dict[str, Normalization]:
        readers = {id(x): name for name, x in self._inputs.items() if self._times[name] == 1}
        found = {}
        for name in self._names:
            output = self._outputs.get(name)
            if output is None or self._times[name] != 1 or id(output) not in readers:
                continue
            norm_name = readers[id(output)]
            module = self._modules[norm_name]
            alone = len(self._readers.readings[id(output)]) == 1
            if alone and reads_outputs(self._modules[name], output, module):
                found[name] = Normalization(norm_name, scale(module))
        return found

    def _addend_place(self, end: str) -> Place | None:
        """Where the other term of the sum passes that alone reads what a module gives."""
        output = self._outputs.get(end)
        if output is None or self._times[end] != 1:
            return None
        reading = self._readers.alone(output)
        if reading is None or reading.addend is None:
            return None
        for time, place in self._places.get(reading.addend, ()):
            if time <= self._called[end] and self._times[place.module] == 1:
                return place  # type: ignore[no-any-return]
        return None
