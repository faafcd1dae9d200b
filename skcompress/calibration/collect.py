"""Run a model on calibration data and watch what its weights are applied to."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..errors import CalibrationValueError, MetaWeightError, NonFiniteInputError
from ..factorized import kind_of
from ..factorized.inputs import Inputs, Lookups, arguments
from ..selection import Site
from .batches import Batch, Batches, device_of
from .borrowed import observer, same_randomness
from .statistics import Statistics, StatisticsSum

_GIB = 1 << 30


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
    memory: float = 2 * _GIB,
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
    if not memory > 0:
        raise CalibrationValueError("memory", "a positive number of bytes", memory)
    if max_positions is not None and not max_positions >= 1:
        raise CalibrationValueError("max_positions", "None or a positive int", max_positions)
    for site in sites:
        if site.slot.read().is_meta:
            raise MetaWeightError(site.name)
    copy = observer(model)
    passes = list(_passes(sites, memory))
    for number, part in enumerate(passes):
        sums = {
            site.name: StatisticsSum(site.slot, max_positions, _generator(seed, site.name))
            for site in part
        }
        title = "calibrate" if len(passes) == 1 else f"calibrate, pass {number + 1}/{len(passes)}"
        bar = tqdm(desc=title, unit="batch", total=_length(data), disable=not verbose)
        with bar:
            _run(copy, part, sums, data, bar)
        while part:
            site = part.pop(0)
            found = sums.pop(site.name)
            if found.reached:
                yield site.name, _finite(site.name, found.result())


def _generator(seed: int, name: str) -> torch.Generator:
    # By name, so that the draws are the same in however many passes.
    return torch.Generator().manual_seed(zlib.crc32(name.encode(), seed & 0xFFFFFFFF))


def _length(data: Batches) -> int | None:
    try:
        return len(data)
    except TypeError:
        return None


def _passes(sites: Sequence[Site], memory: float) -> Iterator[list[Site]]:
    """Cut the sites, in order, into runs whose sums fit into `memory` bytes."""
    part: list[Site] = []
    held = 0
    for site in sites:
        groups, rows, *rest = site.slot.shape
        multiplied = any(not isinstance(module, nn.Embedding) for module in site.modules)
        size = groups * torch.Size(rest).numel() ** 2 if multiplied else rows
        size *= torch.float64.itemsize
        if part and held + size > memory:
            yield part
            part, held = [], 0
        part.append(site)
        held += size
    if part:
        yield part


class _Observation:
    """One pass: hooks that know the mask of the batch under way."""

    def __init__(self, sums: dict[str, StatisticsSum]):
        self.mask: Tensor | None = None
        self._sums = sums

    def hook(self, site_of: dict[str, str]) -> Callable[..., None]:
        """Make a forward hook; `site_of` gives the site of each slot of the module."""

        # After the forward, so that what a layer refuses gets the layer's own words.
        def watch(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            for slot, inputs in slot_inputs(module, args, kwargs, site_of.keys()):
                self._sums[site_of[slot]].add(inputs, self.mask)

        return watch


def _run(
    copy: nn.Module,
    sites: Sequence[Site],
    sums: dict[str, StatisticsSum],
    data: Batches,
    bar: Any,
) -> None:
    slots: dict[str, dict[str, str]] = defaultdict(dict)
    for site in sites:
        for module_name, slot_name in site.users:
            slots[module_name][slot_name] = site.name
    observation = _Observation(sums)
    # Where there are hooks inside, nn.TransformerEncoderLayer does without its fused
    # kernel, which would never call the layers.
    hooks = [
        copy.get_submodule(name).register_forward_hook(observation.hook(site_of), with_kwargs=True)
        for name, site_of in slots.items()
    ]
    try:
        with same_randomness(device_of(copy)), torch.no_grad():
            for number, batch in enumerate(data):
                observation.mask = batch.mask
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


def forward(copy: nn.Module, number: int, batch: Batch, owner: str) -> None:
    """Run a model on one batch; an error of its own gets a note that says which."""
    try:
        copy(*batch.args, **batch.kwargs)
    except Exception as error:
        shapes = [f"{tuple(x.shape)}" for x in batch.args if hasattr(x, "shape")]
        shapes += [f"{k} {tuple(v.shape)}" for k, v in batch.kwargs.items() if hasattr(v, "shape")]
        note = (
            f"while the model was run on batch {number} (counted from 0) of the data of "
            f"{owner}, with inputs of shape {', '.join(shapes) or 'unknown'}"
        )
        if hasattr(error, "add_note"):
            error.add_note(note)
        elif error.args and isinstance(error.args[0], str):  # before Python 3.11
            error.args = (f"{error.args[0]}\n{note}", *error.args[1:])
        raise


def _finite(name: str, found: Statistics) -> Statistics:
    moments = found.moments
    # An input that is not finite shows on the diagonal of its squares.
    if moments is not None and not moments.gram.diagonal(dim1=1, dim2=2).isfinite().all():
        raise NonFiniteInputError(name)
    return found
