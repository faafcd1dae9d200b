"""A copy of a model with its weights pruned as decided."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain

import torch
from torch import Tensor, nn

from ...errors import CalibratedWeightError
from ...fitting.factorizing import add_offset, fingerprint, working_weight
from ...layers import kind_of
from ...layers.reparametrized import copied
from ...layers.writing import write_weights
from ...network.weights import Site
from ...threads import results_side_by_side
from .pruned import PrunedWeight

Choose = Callable[[Tensor, int], Tensor]


@torch.no_grad()
def pruned_copy(
    model: nn.Module,
    sites: Iterable[Site],
    pruned: Mapping[str, PrunedWeight],
    choose: Choose | None = None,
) -> nn.Module:
    """Copy `model`, and set the values of its weights that go to zero.

    choose : gives what stays (bool) of a weight (groups, out, in, *kernel) other than the one that
        was fitted, and how many values that is to be; None where no others will do, since data
        took part
    """
    result = copied(model)
    by_module: dict[str, list[Site]] = {}
    for site in sites:
        if site.name in pruned and not site.slot.read().is_meta:
            by_module.setdefault(site.users[0][0], []).append(site)

    def write(name: str) -> None:
        module = result.get_submodule(name)
        kind = kind_of(module)
        assert kind is not None
        for site in by_module[name]:
            values = _pruned_values(site, pruned[site.name], choose)
            write_weights(kind, module, {site.users[0][1]: values})

    def size(name: str) -> int:
        return sum(site.slot.size for site in by_module[name])

    results_side_by_side(write, list(by_module), size)
    for site in chain.from_iterable(by_module.values()):
        known = pruned[site.name]
        if known.offset is not None and known.offset_to is not None:
            add_offset(result.get_submodule(known.offset_to), known.offset)
    return result


def _pruned_values(site: Site, known: PrunedWeight, choose: Choose | None) -> Tensor:
    """Give a weight as pruned: the one that was fitted, or another one by `choose`."""
    weight = working_weight(site, known.fingerprint.device)
    if fingerprint(site.name, weight) == known.fingerprint:
        return known.applied(weight)
    if choose is None:
        raise CalibratedWeightError(site.name)
    return weight * choose(weight, known.n_kept)
