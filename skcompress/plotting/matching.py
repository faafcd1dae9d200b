"""The weights of several models, side by side."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import ModelMismatchError, NonFiniteWeightError
from ..fitting.candidates import working_weight
from ..network.weights import (
    Patterns,
    Selection,
    Site,
    as_patterns,
    check_model,
    check_patterns,
    flat_shape,
    matches,
    require_sites,
    select,
)


def matching_sites(
    owner: str,
    models: Mapping[str, nn.Module],
    layers: Patterns,
    exclude: Patterns = (),
    parameter: str = "layers",
) -> dict[str, list[Site]]:
    """Find the weights of each model; all have the same ones, by name and shape.

    parameter : what the caller's user knows `layers` as
    """
    if not isinstance(models, Mapping):
        raise TypeError(
            f"models of {owner} must be a dict of label to model; got {type(models).__name__}"
        )
    if not models:
        raise ValueError(f"models of {owner} must hold at least one; got an empty dict")
    found: dict[str, Selection] = {}
    for label, model in models.items():
        check_model(owner, model)
        check_patterns(parameter, layers, model)
        check_patterns("exclude", exclude, model)
        found[label] = select(model, layers, exclude)
        # Why the layers that were asked for do not qualify, rather than all the others.
        asked = [left for left in found[label].left if _asked_for(left.name, layers)]
        require_sites(owner, Selection(found[label].sites, asked or found[label].left))
    first, *others = found
    for other in others:
        _check_same(first, found[first], other, found[other])
        _check_same(other, found[other], first, found[first])
    # In the order of the first model: a layer's place may differ, its name may not.
    order = {site.name: i for i, site in enumerate(found[first].sites)}
    return {
        label: sorted(selection.sites, key=lambda site: order[site.name])
        for label, selection in found.items()
    }


def _asked_for(name: str, layers: Patterns) -> bool:
    return any(matches(pattern, [name]) for pattern in as_patterns(layers))


def _check_same(one: str, ours: Selection, other: str, theirs: Selection) -> None:
    reasons = {left.name: left.reason for left in theirs.left}
    sites = {site.name: site for site in theirs.sites}
    for site in ours.sites:
        if site.name in sites:
            shapes = [flat_shape(s.slot.shape) for s in (site, sites[site.name])]
            if shapes[0] == shapes[1]:
                continue
            difference = f"has a weight {shapes[0]}, and one {shapes[1]}"
        elif site.name in reasons:
            difference = f"is left out ({reasons[site.name]})"
        else:
            difference = "does not exist"
        raise ModelMismatchError(site.name, str(one), str(other), difference)


def finite_weight(site: Site) -> Tensor:
    """Read a weight (groups, out, in, *kernel) in float32 or float64, without gradient."""
    weight = working_weight(site, device=None)
    n_bad = weight.numel() - int(torch.isfinite(weight).sum())
    if n_bad:
        raise NonFiniteWeightError(site.name, n_bad, flat_shape(weight.shape))
    return weight
