"""As many passes over the data as the sums of all weights need, and what each pass takes along."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from math import prod

import torch

from ..errors import CalibrationValueError, MetaWeightError
from ..network.weights import Site
from ..protocols import Slot
from .lagged import by_lags

GIB = 1 << 30


# How many positions of one call of a layer are used; None for all, "auto" for a number that
# depends on the weight, see `positions_of`.
Positions = int | str | None
# Positions that "auto" leaves in each call, and how many for each input where these are more.
_ENOUGH, _FOR_EACH_INPUT = 2048, 8


def positions_of(limit: Positions, slot: Slot) -> int | None:
    """How many positions of one call of a weight are used at most; None for all.

    With "auto" enough that their moments are those of all but for a part that compressing does
    not notice, as several calls are pooled; and all of long kernels along one axis, whose moments
    are summed up by lags.
    """
    if limit != "auto":
        return limit  # type: ignore[return-value]
    _, _, inputs, *kernel = slot.shape
    if by_lags(kernel):
        return None
    return max(_ENOUGH, _FOR_EACH_INPUT * inputs * prod(kernel))


def check_settings(sites: Sequence[Site], memory: float, max_positions: Positions) -> None:
    """Refuse settings and weights that nothing can be measured with."""
    if not memory > 0:
        raise CalibrationValueError("memory", "a positive number of bytes", memory)
    if not (max_positions in (None, "auto") or int(max_positions) >= 1):  # type: ignore[arg-type]
        rule = "None, 'auto' or a positive int"
        raise CalibrationValueError("max_positions", rule, max_positions)
    for site in sites:
        if site.slot.read().is_meta:
            raise MetaWeightError(site.name)


def passes(
    title: str, sites: Sequence[Site], memory: float, size: Callable[[Site], int]
) -> Iterator[tuple[list[Site], str]]:
    """Yield the sites of each pass, in order, and what it is called.

    memory : bytes for the sums of one pass, which has one site at least
    size : how many numbers, in float64, the sums of a site have
    """
    parts = list(_parts(sites, memory, size))
    for number, part in enumerate(parts):
        yield part, title if len(parts) == 1 else f"{title}, pass {number + 1}/{len(parts)}"


def _parts(
    sites: Sequence[Site], memory: float, size: Callable[[Site], int]
) -> Iterator[list[Site]]:
    part: list[Site] = []
    held = 0
    for site in sites:
        n_bytes = size(site) * torch.float64.itemsize
        if part and held + n_bytes > memory:
            yield part
            part, held = [], 0
        part.append(site)
        held += n_bytes
    if part:
        yield part


def generator(seed: int, name: str) -> torch.Generator:
    """Make the source of the draws for one purpose."""
    # By name, so that the draws are the same in however many passes.
    return torch.Generator().manual_seed(zlib.crc32(name.encode(), seed & 0xFFFFFFFF))


def by_module(sites: Sequence[Site]) -> dict[str, dict[str, str]]:
    """Give the site's name by the name of each module that uses it, and of its slot there."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for site in sites:
        for module_name, slot_name in site.users:
            found[module_name][slot_name] = site.name
    return found
