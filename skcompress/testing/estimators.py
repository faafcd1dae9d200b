"""What every plugin keeps because it is an estimator."""

from __future__ import annotations

import pickle
from typing import Any

import torch
from sklearn.base import clone
from torch import Tensor


def checked_estimator(plugin: Any, kind: type | tuple[type, ...]) -> Any:
    """Give the plugin, or an instance with defaults of a plugin class, once it is checked.

    Laws: it is a `kind`; it clones with the same parameters; it prints; it pickles.
    """
    estimator = plugin() if isinstance(plugin, type) else plugin
    name = type(estimator).__name__
    known = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
    assert isinstance(estimator, kind), f"{name} is not a subclass of {known}"
    found: Any = estimator
    twin = clone(found)
    given, copied = found.get_params(deep=False), twin.get_params(deep=False)
    assert given.keys() == copied.keys(), f"{name}: clone has other parameters"
    assert repr(found) == repr(twin), f"{name}: repr changes under clone"
    pickle.loads(pickle.dumps(found))
    return found


def check_unchanged(name: str, law: str, before: Tensor, after: Tensor) -> None:
    """Check that a borrowed weight has kept its values."""
    assert torch.equal(before, after), f"{name}: {law}: the weight was changed"
