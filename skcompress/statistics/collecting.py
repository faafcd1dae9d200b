"""Run a model on calibration data and watch what its weights are applied to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import nn

from ..errors import NonFiniteInputError
from ..layers import kind_of
from ..layers.inputs import Inputs, Lookups, arguments
from ..network.batches import Batch, Batches, device_of
from ..network.observing import forward, observer, same_randomness
from ..network.weights import Site
from .moments import Statistics, StatisticsSum
from .passes import GIB, by_module, check_settings, generator, passes


def collect(
    model: nn.Module, sites: Sequence[Site], data: Batches, **settings: Any
) -> dict[str, Statistics]:
    """Give the `Statistics` of each weight by the name of its site, as `stream` does."""
    return dict(stream(model, sites, data, **settings))


def stream(
    model: nn.Module,
    sites: Sequence[Site],
    data: Batches,
    *,
    memory: float = 2 * GIB,
    max_positions: int | None = None,
    seed: int = 0,
    verbose: bool | int = False,
) -> Iterator[tuple[str, Statistics]]:
    """Yield the name and the `Statistics` of each site that some batch reaches.

    memory : bytes for the sums of one pass over the data, on the model's device. Where
        those of all sites are more, there are several passes, with one site at least. Only
        what the caller keeps outlasts its pass.
    max_positions : how many positions of one call of a layer are used at most, drawn
        anew in each call; None for all of them
    seed : of these draws. They do not depend on which other sites there are.

    The model runs in eval mode and without gradients, as a copy that shares its
    parameters. Layers that are called several times, or that share the weight, have their
    inputs pooled. Where a batch is a dict with an "attention_mask" (batch, sequence),
    positions that it masks do not count in layers whose inputs start with those two axes,
    or with both in one.
    """
    check_settings(sites, memory, max_positions)
    copy = observer(model)
    for part, bar in passes("calibrate", sites, data, memory, _size, verbose):
        sums = {
            site.name: StatisticsSum(site.slot, max_positions, generator(seed, site.name))
            for site in part
        }
        with bar:
            _run(copy, part, sums, data, bar)
        while part:
            site = part.pop(0)
            found = sums.pop(site.name)
            if found.reached:
                yield site.name, _finite(site.name, found.result())


def _size(site: Site) -> int:
    """How many numbers the sums of a weight have."""
    groups, rows, *rest = site.slot.shape
    multiplied = any(not isinstance(module, nn.Embedding) for module in site.modules)
    return groups * prod(rest) ** 2 if multiplied else rows


class _Observation:
    """One pass: hooks that know the batch under way."""

    def __init__(self, sums: dict[str, StatisticsSum]):
        self.batch: Batch | None = None
        self._sums = sums

    def hook(self, site_of: dict[str, str]) -> Callable[..., None]:
        """Make a forward hook; `site_of` gives the site of each slot of the module."""

        # After the forward, so that what a layer refuses gets the layer's own words.
        def watch(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            assert self.batch is not None
            for slot, inputs in slot_inputs(module, args, kwargs, site_of.keys()):
                self._sums[site_of[slot]].add(inputs, self.batch.mask, self.batch.weights)

        return watch


def _run(
    copy: nn.Module,
    sites: Sequence[Site],
    sums: dict[str, StatisticsSum],
    data: Batches,
    bar: Any,
) -> None:
    observation = _Observation(sums)
    # Where there are hooks inside, nn.TransformerEncoderLayer does without its fused
    # kernel, which would never call the layers.
    hooks = [
        copy.get_submodule(name).register_forward_hook(observation.hook(site_of), with_kwargs=True)
        for name, site_of in by_module(sites).items()
    ]
    try:
        with same_randomness(device_of(copy)), torch.no_grad():
            for number, batch in enumerate(data):
                observation.batch = batch
                forward(copy, number, batch, data.owner)
                bar.update()
    finally:
        for hook in hooks:
            hook.remove()


def slot_inputs(
    module: nn.Module, args: Any, kwargs: dict[str, Any], wanted: Collection[str]
) -> Iterator[tuple[str, Inputs | Lookups]]:
    """Yield what the wanted weights of a module are applied to in this call of it."""
    kind = kind_of(module)
    assert kind is not None
    for slot, inputs in kind.inputs(module, wanted, arguments(module, args, kwargs)):
        if slot in wanted:
            yield slot, inputs


def _finite(name: str, found: Statistics) -> Statistics:
    moments = found.moments
    # An input that is not finite shows on the diagonal of its squares.
    if moments is not None and not all(m.diagonal.isfinite().all() for m in moments.covariances):
        raise NonFiniteInputError(name)
    return found
