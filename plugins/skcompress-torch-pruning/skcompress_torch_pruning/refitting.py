"""Layers that have lost inputs, fitted to give what they gave: in order of execution.

The compressed network is played by the original one with zeros where channels are no longer read,
which gives the same values in a network of the same shape: its moments are those of what each
layer will meet, and the goal is what the original layer gave from what it met.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from skcompress.calibration import Anchored, Lockstep, device_of, same_randomness
from skcompress.compressors.calibrated import Calibration, noise
from skcompress.compressors.factorizing import add_offset
from skcompress.compressors.sequential import RIDGE
from skcompress.decompositions.regression import least_squares
from skcompress.protocols import Metric
from skcompress.selection import Site

from .groups import Removal
from .removing import columns, copied, matrix


@dataclass(frozen=True)
class Fit:
    """What a layer gets instead of its weight, before channels are taken out of it.

    weight : (groups, out, in, *kernel), zero where channels go
    offset : (groups * out,), added to the outputs; None for nothing
    offset_to : name of the module that adds it: the layer, or the batch normalisation after it
    """

    weight: Tensor
    offset: Tensor | None = None
    offset_to: str | None = None


def refitted(
    model: nn.Module,
    sites: Collection[Site],
    gone: Removal,
    calibration: Calibration,
    verbose: bool | int,
) -> dict[str, Fit]:
    """Fit each of these layers anew, by name.

    sites : weights of the layers to be fitted; each alone in its layer
    gone : what goes of each layer
    """
    by_name = {site.name: site for site in sites}
    fits: dict[str, Fit] = {}
    with same_randomness(device_of(model)), torch.no_grad():
        networks = Lockstep(
            model, by_name, calibration.batches,
            max_positions=calibration.max_positions, seed=calibration.seed,
        )  # fmt: skip
        total = len(networks)
        for name in tqdm(networks, desc="refit", unit="layer", total=total, disable=not verbose):
            site = by_name[name]
            found = networks.anchored(name, {"": site.slot}).get("")
            layer = networks.pristine(name)
            lost = gone.get(name, ([], []))[1]
            fits[name] = _fit(layer, lost, found, calibration.offset_to(site))
            stand_in = copied(layer)
            networks.replace(name, stand_in)
            apply_(networks.successor, {name: fits[name]})
    return fits


def apply_(module_of: object, fits: dict[str, Fit]) -> None:
    """Write fits into the layers that `module_of` gives by name, in place."""
    for name, fit in fits.items():
        layer = module_of(name)  # type: ignore[operator]
        with torch.no_grad():
            weight = matrix(layer)
            weight.copy_(fit.weight)
            if fit.offset is not None and fit.offset_to is not None:
                add_offset(module_of(fit.offset_to), fit.offset)  # type: ignore[operator]


def _fit(
    layer: nn.Module, lost: Collection[int], found: Anchored | None, offset_to: str | None
) -> Fit:
    weight = matrix(layer)
    kept = torch.ones(weight.shape[0], weight.shape[2], dtype=torch.bool, device=weight.device)
    kept[columns(weight, lost)] = False
    result = weight.clone()
    result[~kept[:, None].expand(result.shape[:3])] = 0
    if found is None:  # no batch reaches it
        return Fit(result)
    moments = found if offset_to is None else found.centred()
    rest = noise(found.gram)
    size = weight[0, 0, 0].numel()
    for g, group in enumerate(weight):
        inputs = kept[g].repeat_interleave(size)
        part = group[:, kept[g]].float()
        gram, cross = moments.gram[g].to(part.device), moments.cross[g].to(part.device)
        metric = Metric(gram[inputs][:, inputs], cross[:, inputs], 0.0, ridge=RIDGE, noise=rest[g])
        if part.numel():
            result[g, :, kept[g]] = least_squares(part, metric).to(result)
    if offset_to is None:
        return Fit(result)
    given = torch.einsum("gon,gn->go", result.flatten(2).double(), found.inputs.to(weight.device))
    return Fit(result, (found.outputs.to(given) - given).flatten(), offset_to)
