"""What the outputs of a network lose by the zeros of one weight: measured, not predicted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...fitting.calibration import Calibration
from ...fitting.candidates import working_weight
from ...layers import kind_of
from ...layers.reparametrized import copied
from ...layers.writing import write_weights
from ...masks import masked
from ...network.weights import Site
from ...ranking import keep_largest
from ...statistics.divergence import divergence


def measured_distortions(
    sites: Sequence[Site],
    scores: Mapping[str, Tensor],
    calibration: Calibration,
    device: Any,
) -> dict[str, Callable[[Sequence[int]], list[float]]]:
    """Give, by the name of the site, what is lost with so many of its values kept.

    That is the divergence of the outputs on the data, with all other weights as they are: one run
    over the data for each number, of the original and one copy side by side.
    """
    model, data = calibration.model, calibration.batches
    trial = copied(model)

    def of(site: Site) -> Callable[[Sequence[int]], list[float]]:
        name, slot = site.users[0]
        module = trial.get_submodule(name)
        kind = kind_of(module)
        assert kind is not None

        @torch.no_grad()
        def lost(counts: Sequence[int]) -> list[float]:
            weight, found = working_weight(site, device), []
            try:
                for count in counts:
                    kept = keep_largest(scores[site.name], count)
                    write_weights(kind, module, {slot: masked(weight, kept)})
                    found.append(divergence(model, trial, data))
            finally:
                write_weights(kind, module, {slot: weight})
            return found

        return lost

    return {site.name: of(site) for site in sites}
