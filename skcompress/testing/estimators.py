"""What every plugin keeps because it is an estimator."""

from __future__ import annotations

import pickle
from typing import Any

import torch
from sklearn.base import clone
from torch import Tensor

from .spaces import check_declaration


def checked_estimator(plugin: Any, kind: type) -> Any:
    """Give the plugin, or an instance with defaults of a plugin class, once it is checked.

    Laws: it is a `kind`; it clones with the same parameters; it prints; it pickles; what
    its `search_space` declares are parameters, and can be set.
    """
    estimator = plugin() if isinstance(plugin, type) else plugin
    name = type(estimator).__name__
    assert isinstance(estimator, kind), f"{name} is not a subclass of {kind.__name__}"
    found: Any = estimator
    twin = clone(found)
    given, copied = found.get_params(deep=False), twin.get_params(deep=False)
    assert given.keys() == copied.keys(), f"{name}: clone has other parameters"
    assert repr(found) == repr(twin), f"{name}: repr changes under clone"
    pickle.loads(pickle.dumps(found))
    check_declaration(found)
    return found


def check_unchanged(name: str, law: str, before: Tensor, after: Tensor) -> None:
    """Check that a borrowed weight has kept its values."""
    assert torch.equal(before, after), f"{name}: {law}: the weight was changed"
