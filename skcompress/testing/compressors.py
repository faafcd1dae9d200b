"""Laws of compressors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sklearn.base import clone
from torch import nn

from ..errors import BudgetError
from ..metrics import count_parameters
from ..protocols import Compressor
from .cases import small_models
from .estimators import checked_estimator
from .spaces import corners
from .untouched import check_untouched, snapshot


def check_compressor(plugin: Compressor | type[Compressor], *, with_data: bool = False) -> None:
    """Check a compressor on a few small models.

    with_data : whether `fit` is given inputs of each model, for those that cannot do without

    Laws: fit and transform leave model, mode, hooks and global random state untouched;
    the result is a new module that runs, shares no storage with the input, keeps its
    mode and has no more parameters; the report knows its size; the same seed repeats; a
    clone is unfitted; a class instead of a model is refused; an error leaves no trace;
    what its `search_space` declares works, or is too small a budget for the model.
    """
    compressor: Compressor = checked_estimator(plugin, Compressor)
    name = type(compressor).__name__
    for case, model, args in small_models():
        where = f"{name} on {case}"
        state = snapshot(model)
        rng = torch.random.get_rng_state()
        data = [args[0]] if with_data else None
        fitted: Any = clone(compressor)
        small = fitted.fit_transform(model, data)
        assert torch.equal(rng, torch.random.get_rng_state()), f"{where}: draws global numbers"
        check_untouched(where, model, state)
        ours = {p.data_ptr() for p in model.parameters()}
        assert not ours & {p.data_ptr() for p in small.parameters()}, f"{where}: shares storage"
        assert small.training == model.training, f"{where}: the mode changes"
        assert count_parameters(small) <= count_parameters(model), f"{where}: grows"
        assert small(*args).shape == model(*args).shape, f"{where}: another output shape"
        again = clone(compressor).fit(model, data).transform(model)
        for a, b in zip(small.parameters(), again.parameters(), strict=True):
            assert torch.equal(a, b), f"{where}: the same settings give other weights"
        assert str(fitted.report_), f"{where}: an empty report"
    _check_corners(compressor, with_data)
    inputs = [torch.zeros(2, 8)] if with_data else None
    _refuses(
        name, lambda: clone(compressor).fit(nn.Linear, inputs), "the class instead of an instance"
    )
    broken: Any = nn.Sequential(nn.Linear(8, 8))
    with torch.no_grad():
        broken[0].weight[0, 0] = float("nan")
    state = snapshot(broken)
    _refuses(name, lambda: clone(compressor).fit(broken, inputs), "a NaN weight")
    check_untouched(f"{name} after an error", broken, state)


def _check_corners(compressor: Compressor, with_data: bool) -> None:
    _, model, (inputs,) = next(m for m in small_models() if m[0] == "convolutional")
    for where, variant, needs_data in corners(compressor):
        try:
            small = variant.fit_transform(model, inputs if needs_data or with_data else None)
        except BudgetError:
            continue
        assert count_parameters(small) <= count_parameters(model), f"{where}: grows"
        assert small(inputs).shape == model(inputs).shape, f"{where}: another output shape"


def _refuses(name: str, call: Callable[[], object], what: str) -> None:
    try:
        call()
    except (TypeError, ValueError):
        return
    raise AssertionError(f"{name} accepts {what}")
