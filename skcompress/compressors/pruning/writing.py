"""A copy of a model with its weights pruned as decided."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from ...errors import CalibratedWeightError
from ...factorized import kind_of
from ...factorized.reparametrized import copied
from ...factorized.writing import write_weights
from ...selection import Site
from ..factorizing import add_offset, fingerprint, working_weight
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
    for site in sites:
        known = pruned.get(site.name)
        if known is None or site.slot.read().is_meta:
            continue
        weight = working_weight(site, known.fingerprint.device)
        if fingerprint(site.name, weight) == known.fingerprint:
            values = known.applied(weight)
        elif choose is None:
            raise CalibratedWeightError(site.name)
        else:
            values = weight * choose(weight, known.n_kept)
        module_name, slot_name = site.users[0]
        module = result.get_submodule(module_name)
        kind = kind_of(module)
        assert kind is not None
        write_weights(kind, module, {slot_name: values})
        if known.offset is not None and known.offset_to is not None:
            add_offset(result.get_submodule(known.offset_to), known.offset)
    return result
