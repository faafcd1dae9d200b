"""Run a model on calibration data and watch what its weights are applied to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from math import prod
from typing import Any

from torch import nn

from ..errors import NonFiniteInputError
from ..layers import kind_of
from ..layers.inputs import arguments
from ..network.batches import Batch, Batches
from ..network.observing import Reducer, observe
from ..network.weights import Site
from ..protocols import Inputs, Lookups
from .moments import Statistics, StatisticsSum
from .passes import GIB, Positions, by_module, check_settings, generator, passes, positions_of


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
    max_positions: Positions = None,
    seed: int = 0,
    verbose: bool | int = False,
) -> Iterator[tuple[str, Statistics]]:
    """Yield the name and the `Statistics` of each site that some batch reaches.

    memory : bytes for the sums of one pass over the data, on the model's device. Where
        those of all sites are more, there are several passes, with one site at least. Only
        what the caller keeps outlasts its pass.
    max_positions : how many positions of one call of a layer are used at most, drawn
        anew in each call; None for all of them, "auto" as `positions_of` says
    seed : of these draws. They do not depend on which other sites there are.

    The model runs in eval mode and without gradients, as a copy that shares its
    parameters. Layers that are called several times, or that share the weight, have their
    inputs pooled. Where a batch is a dict with an "attention_mask" (batch, sequence),
    positions that it masks do not count in layers whose inputs start with those two axes,
    or with both in one.
    """
    check_settings(sites, memory, max_positions)
    for part, title in passes("calibrate", sites, memory, _size):
        sums = {
            site.name: StatisticsSum(
                site.slot, positions_of(max_positions, site.slot), generator(seed, site.name)
            )
            for site in part
        }
        observe(model, data, _InputMoments(part, sums), title=title, verbose=verbose)
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


class _InputMoments(Reducer):
    """Sums of what weights are applied to, by the name of the site."""

    def __init__(self, sites: Sequence[Site], sums: dict[str, StatisticsSum]):
        self._sites, self._sums = sites, sums
        self._batch: Batch | None = None

    def attach(self, network: nn.Module) -> None:  # type: ignore[override]
        # Where there are hooks inside, nn.TransformerEncoderLayer does without its fused
        # kernel, which would never call the layers.
        for name, site_of in by_module(self._sites).items():
            hook = self._hook(site_of)
            network.get_submodule(name).register_forward_hook(hook, with_kwargs=True)

    def before(self, batch: Batch) -> None:
        self._batch = batch

    def _hook(self, site_of: dict[str, str]) -> Callable[..., None]:
        # After the forward, so that what a layer refuses gets the layer's own words.
        def watch(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            assert self._batch is not None
            for slot, inputs in slot_inputs(module, args, kwargs, site_of.keys()):
                self._sums[site_of[slot]].add(inputs, self._batch.mask, self._batch.weights)

        return watch


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
