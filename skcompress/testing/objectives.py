"""Laws of what a search measures."""

from __future__ import annotations

import math
from dataclasses import fields

import torch

from ..protocols import Bench, Objective
from .cases import small_models
from .estimators import checked_estimator
from .untouched import check_untouched, snapshot


def check_objective(plugin: Objective | type[Objective]) -> None:
    """Check an objective on a few small models.

    Laws: it says which way is better, and needs fields of `Bench`; its name is a word; it gives a
    finite number for every model, one without a fraction where it is `counted`, and the same again
    unless it is `timed`; the model, its hooks and the global random state stay as they are.
    """
    objective = checked_estimator(plugin, Objective)
    name = type(objective).__name__
    assert objective.direction in ("maximize", "minimize"), f"{name}: direction of no kind"
    unknown = set(objective.needs) - {field.name for field in fields(Bench)}
    assert not unknown, f"{name}: needs {sorted(unknown)}, which is no field of Bench"
    assert objective.name.isidentifier(), f"{name}: its name {objective.name!r} is no word"
    for case, model, args in small_models():
        where = f"{name} on {case}"
        model.eval()
        state, random = snapshot(model), torch.random.get_rng_state()
        with torch.no_grad():
            targets = torch.zeros(len(args[0]))
            bench = Bench((args, {}), lambda _: 0.5, (args[0], targets), args[0])
            values = [float(objective.measure(model, bench)) for _ in range(2)]
        assert all(map(math.isfinite, values)), f"{where}: gives {values[0]}"
        whole = not objective.counted or values[0].is_integer()
        assert whole, f"{where}: counts {values[0]}, which is no whole number"
        assert objective.timed or values[0] == values[1], f"{where}: does not repeat"
        check_untouched(where, model, state)
        assert torch.equal(random, torch.random.get_rng_state()), f"{where}: draws global numbers"
