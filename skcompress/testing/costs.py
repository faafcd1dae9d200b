"""Laws that every cost keeps."""

from __future__ import annotations

import numpy as np

from ..decompositions.svd import SVD
from ..network.batches import batches
from ..network.calls import costed
from ..network.structure import look
from ..network.weights import select
from ..protocols import Cost, Options, Stage
from .cases import small_models
from .estimators import checked_estimator


def check_cost(plugin: Cost | type[Cost]) -> None:
    """Check that a cost counts weights as it counts models.

    - no weight costs less than nothing, and all of them no more than their model;
    - many options cost together what each costs by itself;
    - more numbers never cost less, for one way of cutting a weight up.
    """
    cost: Cost = checked_estimator(plugin, Cost)
    for case, model, (x,) in small_models():
        data = batches("check_cost", x, model)
        sites = select(model).sites
        names = [name for site in sites for name, _ in site.users]
        calls = look(model, names, data).calls if cost.needs_inputs else None
        first = next(iter(data)) if cost.needs_inputs else None
        args, kwargs = ((), {}) if first is None else (first.args, first.kwargs)
        where, total = f"{type(cost).__name__} on {case}", 0.0
        for site in sites:
            weight = costed(site, calls)
            if cost.refusal(weight) is not None:
                continue
            dense = cost.of_weight(weight)
            assert dense >= 0, f"{where}, {site.name}: negative"
            total += dense
            shape = site.slot.shape
            if shape[0] > 1:
                continue
            ranks = range(1, min(shape[1], shape[2]) + 1)
            chains: list[tuple[Stage, ...]] = [SVD().stages(shape[1:], rank) for rank in ranks]
            numbers = np.array([sum(stage.size for stage in chain) for chain in chains])
            costs = list(cost.of_options(weight, Options(numbers, chains.__getitem__)))
            each = [cost.of_stages(weight, chain) for chain in chains]
            assert np.allclose(costs, each), f"{where}, {site.name}: not what each costs"
            assert (np.diff(costs) >= 0).all(), f"{where}, {site.name}: more numbers cost less"
        whole = cost.of_model(model.eval(), args, kwargs)
        assert total <= whole * (1 + 1e-9), f"{where}: weights cost more than their model"
