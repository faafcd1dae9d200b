"""What errors of recurrent weights come to in the states, where they are fed back.

The curve of a weight says what it loses of what it gives, for the original's states. Where a layer
is given again what it gave, the same loss is many times as large in the states, and not as many
times for the weight of the inputs as for that of the states, or for one layer of an LSTM as for the
next: such curves cannot be compared with each other, or with those of other layers. So it is tried
out: one weight at a time is cut, the layer runs freely, and the error of its last states is
measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import log
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..layers import kind_of
from ..layers.inputs import arguments
from ..layers.reparametrized import copied
from ..lockstep.preactivations import state_energy, state_error
from ..network.batches import Batch
from ..network.observing import Reducer, observe
from ..network.weights import Site
from ..protocols.product import multiply_out
from .calibration import Calibration
from .candidates import Findings, working_weight
from .fitted import missing_mean, write

# Sequences that are run, and the relative squared error at which a weight is cut.
SEQUENCES = 48
TRIED_AT = 0.05


def amplifications(
    calibration: Calibration,
    found: Mapping[str, Findings],
    device: Any,
    verbose: bool | int,
) -> dict[str, float]:
    """How many times as large an error of each recurrent weight is in the states.

    Relative squared errors of states, over those that curves say. Missing are weights of other
    layers, and of layers that one forward calls several times: their states are not followed.
    """
    by_module: dict[str, list[Site]] = defaultdict(list)
    for site in calibration.sites:
        name, kind = site.users[0][0], kind_of(site.modules[0])
        n_calls = sum(call.times for call in calibration.structure.calls.get(name, ()))
        alone = n_calls == 1 == len(site.users) and found[site.name].candidates
        if alone and kind is not None and kind.recurrences(site.modules[0]):
            by_module[name].append(site)
    if not by_module:
        return {}
    calls = _Calls(by_module)
    part = calibration.part(SEQUENCES).batches
    observe(calibration.model, part, calls, title="run freely", verbose=verbose)
    result = {}
    with torch.no_grad():
        for name, sites in by_module.items():
            layer = _Layer(calls.module[name], calls.batches[name], calls.given[name])
            for site in sites:
                value = layer.amplification(site, found[site.name], device)
                if value is not None:
                    result[site.name] = value
    return result


class _Calls(Reducer):
    """Notes what layers are called with, by their names."""

    def __init__(self, names: Iterable[str]):
        self.module: dict[str, nn.Module] = {}
        self.given: dict[str, list[Any]] = {name: [] for name in names}
        self.batches: dict[str, list[Batch]] = {name: [] for name in names}
        self._batch: Batch | None = None

    def attach(self, network: nn.Module) -> None:  # type: ignore[override]
        def note(name: str) -> Any:
            def watch(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
                assert self._batch is not None
                self.given[name].append(arguments(module, args, kwargs))
                self.batches[name].append(self._batch)

            return watch

        for name in self.given:
            self.module[name] = network.get_submodule(name)
            self.module[name].register_forward_pre_hook(note(name), with_kwargs=True)

    def before(self, batch: Batch) -> None:
        self._batch = batch


class _Layer:
    """A layer that runs on what it was given, with one weight at a time cut."""

    def __init__(self, module: nn.Module, batches: Sequence[Batch], given: Sequence[Any]):
        kind = kind_of(module)
        assert kind is not None
        self._recurrences, self._batches = kind.recurrences(module), batches
        self._module, self._trial = module, copied(module)
        # What each recurrence is given, and what the last one gives.
        self._given: list[Sequence[Any]] = []
        for recurrence in self._recurrences:
            self._given.append(given)
            self._goals = [recurrence.run(module, call) for call in given]
            given = [run.following for run in self._goals]
        self._energy = state_energy(self._goals, batches)

    def amplification(self, site: Site, found: Findings, device: Any) -> float | None:
        """Cut a weight, and measure; None where that says nothing."""
        candidate, weight = found.candidates[0], working_weight(site, device)
        curve = candidate.curve
        if not (curve.total > 0 and self._energy > 0):
            return None
        lost = np.maximum(curve.errors / curve.total, 1e-12)
        option = int(np.abs(np.log(lost) - log(TRIED_AT)).argmin())
        factors = candidate.factors(weight, curve.rank_at(option))
        value = torch.stack([multiply_out(part) for part in factors])
        offset = None if found.means is None else missing_mean(value, found.means)
        error = self._error(site, value, offset) / self._energy
        return error / float(lost[option]) if 0 < error < float("inf") else None

    def _error(self, site: Site, value: Tensor, offset: Tensor | None) -> float:
        """Of the last states, with another value of a weight, and what is added to its bias."""
        slot = site.slot
        write(self._trial, {slot.name: value})
        bias = None
        if offset is not None and slot.bias is not None:
            bias = getattr(self._trial, slot.bias).detach()
            bias += offset.to(bias)
        first = next(n for n, r in enumerate(self._recurrences) if slot.name in r.slots)
        given = self._given[first]
        for recurrence in self._recurrences[first:]:
            runs = [recurrence.run(self._trial, call) for call in given]
            given = [run.following for run in runs]
        write(self._trial, {slot.name: slot.read().detach()})
        if bias is not None:
            bias.copy_(getattr(self._module, str(slot.bias)))
        return state_error(self._goals, runs, self._batches)
