"""What every plugin keeps because it is an estimator."""

from __future__ import annotations

import pickle
from typing import Any

import torch
from sklearn.base import clone
from torch import Tensor


def check_estimator(estimator: Any, kind: type) -> None:
    """Check that `estimator` is a `kind`, and that it clones, prints and pickles."""
    name = type(estimator).__name__
    related = isinstance(estimator, kind)
    assert related, f"{name} is not a subclass of {kind.__name__}"
    twin: Any = clone(estimator)
    given, copied = estimator.get_params(deep=False), twin.get_params(deep=False)
    assert given.keys() == copied.keys(), f"{name}: clone has other parameters"
    assert repr(estimator) == repr(twin), f"{name}: repr changes under clone"
    pickle.loads(pickle.dumps(estimator))


def check_unchanged(name: str, law: str, before: Tensor, after: Tensor) -> None:
    """Check that a borrowed weight has kept its values."""
    assert torch.equal(before, after), f"{name}: {law}: the weight was changed"
