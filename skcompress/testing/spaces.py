"""Laws of what a plugin declares as worth searching."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

from sklearn.base import clone

from .. import registry
from ..spaces import FloatRange, IntRange, Options, Plugins, Space, declared_space


def check_declaration(estimator: Any) -> None:
    """Check `search_space` of an estimator.

    Laws: it maps names of parameters to ranges of `skcompress.spaces`; both ends of each
    range, every option and every plugin can be set, and survive clone, repr and pickle.
    """
    name = type(estimator).__name__
    known = estimator.get_params(deep=False)
    for parameter in declared_space(estimator):
        assert parameter in known, f"{name}: search_space has {parameter!r}, which is no parameter"
    for where, variant, _ in corners(estimator):
        twin = clone(variant)
        assert repr(twin) == repr(variant), f"{where}: repr changes under clone"
        assert repr(pickle.loads(pickle.dumps(variant))) == repr(variant), f"{where}: pickle"


def corners(estimator: Any) -> Iterator[tuple[str, Any, bool]]:
    """Yield a clone for each end of a range, each option and each plugin that is declared.

    Before each stands what it is, for messages; after it, whether it needs data.
    """
    for parameter, space in declared_space(estimator).items():
        for value, needs_data in _values(space):
            where = f"{type(estimator).__name__}({parameter}={value!r}), of its search_space"
            variant = clone(estimator).set_params(**{parameter: value})
            yield where, variant, needs_data


def _values(space: Space) -> list[tuple[Any, bool]]:
    """Values that a range stands for, and whether they need data."""
    if isinstance(space, FloatRange | IntRange):
        values: list[Any] = [space.low, space.high]
    elif isinstance(space, Options):
        values = [value for _, value in space.items]
    else:
        assert isinstance(space, Plugins)
        values = list(registry.offered(space)) if space.choose else []
        blind = registry.offered(space, with_data=False)
        return [(value, space.needs_data or value not in blind) for value in values]
    return [(value, space.needs_data) for value in values]
