"""Importances of all numbers of a model's weights, with the data that a criterion asks for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import CriterionScoreError
from ...fitting.calibration import Calibration, on
from ...fitting.candidates import working_weight
from ...network.batches import Batches
from ...network.weights import Site
from ...protocols import Criterion, DataCriterion, Evidence
from ...statistics.moments import Statistics
from ...statistics.weight_gradients import weight_gradients
from ...threads import results_side_by_side


def scored(
    criterion: Criterion | DataCriterion,
    sites: Sequence[Site],
    calibration: Calibration | None,
    device: Any,
    verbose: bool | int = False,
) -> dict[str, Tensor]:
    """Give scores (groups, out, in, *kernel) by the name of the site.

    Sites that the data does not reach, where it is asked for, are missing.
    """
    if isinstance(criterion, Criterion):
        # Memory that is taken by one thread and let go by another is slow to come back.
        room = {site.name: torch.empty_like(working_weight(site, device)) for site in sites}

        def score(site: Site) -> None:
            for part, there in zip(working_weight(site, device), room[site.name], strict=True):
                there.copy_(_checked(site, criterion, part, criterion.scores(part)))

        if "random_state" in criterion.get_params():  # draws in the order of the weights
            for site in sites:
                score(site)
        else:
            results_side_by_side(score, sites, size=lambda site: site.slot.size)
        return room
    assert calibration is not None
    return {
        site.name: torch.stack(
            [
                _checked(site, criterion, *pair, criterion.scores(*pair))
                for pair in zip(working_weight(site, device), evidence, strict=True)
            ]
        )
        for site, evidence in gathered(criterion.needs, sites, calibration, device, verbose)
    }


def gathered(
    needs: Sequence[str],
    sites: Sequence[Site],
    calibration: Calibration,
    device: Any,
    verbose: bool | int = False,
) -> Iterator[tuple[Site, list[Evidence]]]:
    """Yield each site that the data reaches, with what is asked for of each of its groups."""
    of_weights: dict[str, Mapping[str, Tensor]] = {
        what: calibration.recall(
            _differentiated, calibration.model, sites, calibration.batches, what, calibration.seed,
            aside={"verbose": verbose},
        )
        for what in needs
        if what != "gram"
    }  # fmt: skip
    reached: Iterable[tuple[Site, Statistics | None]] = [(site, None) for site in sites]
    if "gram" in needs:
        reached = calibration.statistics(sites, verbose)
    for site, statistics in reached:
        name = site.name
        where = site.slot.parameters[0].device if device is None else torch.device(device)
        if all(name in found for found in of_weights.values()):
            yield (
                site,
                [
                    Evidence(
                        **_inputs(statistics, g, where),
                        **{what: found[name][g].to(where) for what, found in of_weights.items()},
                    )
                    for g in range(site.slot.groups)
                ],
            )


def _differentiated(
    model: nn.Module, sites: Sequence[Site], batches: Batches, what: str, seed: int, **aside: Any
) -> dict[str, Tensor]:
    return dict(weight_gradients(model, sites, batches, what, seed=seed, **aside))


def _inputs(statistics: Statistics | None, group: int, device: Any) -> dict[str, Tensor | None]:
    if statistics is None:
        return {}
    if statistics.moments is not None:
        return {"gram": on(device, statistics.moments.gram[group])}
    assert statistics.lookups is not None
    n = statistics.lookups.sum().clamp(min=1)
    return {"lookups": on(device, statistics.lookups / n)}


def _checked(site: Site, criterion: object, weight: Tensor, *rest: Any) -> Tensor:
    """Refuse scores that nothing can be chosen by."""
    scores: Tensor = rest[-1]
    name = type(criterion).__name__
    if scores.shape != weight.shape:
        what = f"scores of shape {tuple(scores.shape)}, where the weight has {tuple(weight.shape)}"
        raise CriterionScoreError(site.name, name, what)
    # NaN comes through as both ends.
    least, largest = scores.aminmax()
    if not bool(torch.isfinite(least) & torch.isfinite(largest)):
        n_bad = int(scores.numel() - scores.isfinite().sum())
        raise CriterionScoreError(site.name, name, f"{n_bad} NaN or infinite scores")
    if least < 0:
        raise CriterionScoreError(site.name, name, f"negative scores, down to {float(least):.3g}")
    return scores
