"""What of an estimator is worth searching: a declaration beside its parameters.

A class attribute `search_space` maps names of parameters to ranges or choices. Classes
inherit it entry by entry, and a subclass writes only what it adds or changes; None takes
an entry out. `skcompress.suggest_params` and `CompressionSearch` read it, from plugins as
from everything else.

>>> from skcompress.protocols import Regularizer
>>> class Rough(Regularizer):
...     search_space = {"power": FloatRange(1.0, 2.0)}
...
>>> sorted(declared_space(Rough))
['power', 'weight']
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from .errors import SearchDeclarationError, SearchRangeError

# What Optuna stores as a choice, and a database with it.
_STORABLE = (type(None), bool, int, float, str)


@dataclass(frozen=True)
class FloatRange:
    """Numbers from `low` to `high`, both included.

    log : drawn evenly in the logarithm
    needs_data : makes sense only where the compressor is given calibration data
    """

    low: float
    high: float
    log: bool = False
    needs_data: bool = False

    def __post_init__(self) -> None:
        _check_bounds(self, Real, "a finite number")


@dataclass(frozen=True)
class IntRange:
    """Whole numbers from `low` to `high`, both included; the rest as of `FloatRange`."""

    low: int
    high: int
    log: bool = False
    needs_data: bool = False

    def __post_init__(self) -> None:
        _check_bounds(self, Integral, "a whole number")


@dataclass(frozen=True)
class Options:
    """One of several values.

    values : None, bools, numbers or strings; or a mapping of label -> any value. The
        labels are what a study stores. Of values that are estimators, the parameters are
        searched too.
    needs_data : makes sense only where the compressor is given calibration data

    >>> Options({"small": (64,), "large": (64, 64)}).labels
    ('small', 'large')
    """

    values: Sequence[Any] | Mapping[str, Any]
    needs_data: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.values, str) or not isinstance(self.values, Sequence | Mapping):
            rule = "a tuple of values, or a mapping of label to value"
            raise SearchRangeError("values", "Options", rule, self.values)
        if not self.labels:
            raise SearchRangeError("values", "Options", "at least one", self.values)
        for label in self.labels:
            if not isinstance(label, _STORABLE):
                rule = (
                    "None, bools, numbers or strings, for a study to store; for anything else "
                    "pass a mapping of label to value"
                )
                raise SearchRangeError("values", "Options", rule, label)
        # A study looks choices up by ==, to which 1 is True.
        if any(label in self.labels[:i] for i, label in enumerate(self.labels)):
            raise SearchRangeError("values", "Options", "different from each other", self.labels)

    @property
    def labels(self) -> tuple[Any, ...]:
        """What a study stores of each."""
        return tuple(self.values)

    @property
    def items(self) -> list[tuple[Any, Any]]:
        """Pairs of label and value."""
        if isinstance(self.values, Mapping):
            return list(self.values.items())
        return [(value, value) for value in self.values]


@dataclass(frozen=True)
class Plugins:
    """One of the plugins of a kind, each with what it declares itself.

    kind : of the registry, such as "regularizers"
    names : which of them, and None for no plugin; all that are installed, by default
    leave_out : names not to take of those that are installed
    protocol : only those of this class, where there are several protocols of one kind
    by_name : whether the estimator takes settings as `parameter__setting` beside a name, as
        skorch's nets do. The others get an instance where there are settings.
    choose : whether it is chosen at all. False keeps the plugin that the estimator has, and
        searches only its parameters.
    needs_data : makes sense only where the compressor is given calibration data
    """

    kind: str
    names: tuple[str | None, ...] | None = None
    leave_out: tuple[str, ...] = ()
    protocol: type | None = None
    by_name: bool = False
    choose: bool = True
    needs_data: bool = False


Space = FloatRange | IntRange | Options | Plugins
# What a class declares.
SearchSpace = Mapping[str, Space | None]


def is_space(value: object) -> bool:
    """Whether this is one of the ranges and choices above."""
    return isinstance(value, FloatRange | IntRange | Options | Plugins)


def declared_space(estimator: Any) -> dict[str, Space]:
    """Give what an estimator, or a class, declares, by name of parameter, sorted.

    Raises
    ------
    SearchDeclarationError : a `search_space` that is no mapping of names to ranges
    """
    cls = estimator if isinstance(estimator, type) else type(estimator)
    found: dict[str, Space | None] = {}
    for base in reversed(cls.__mro__):
        own = vars(base).get("search_space", {})
        if not isinstance(own, Mapping):
            raise SearchDeclarationError(base.__name__, f"it is {own!r}")
        for name, space in own.items():
            if not (space is None or is_space(space)):
                raise SearchDeclarationError(base.__name__, f"{name!r} is {space!r}")
            found[name] = space
    return {name: found[name] for name in sorted(found) if found[name] is not None}  # type: ignore[misc]


def _check_bounds(space: FloatRange | IntRange, kind: Any, number: str) -> None:
    owner = type(space).__name__
    for name, value in (("low", space.low), ("high", space.high)):
        # bool is an Integral.
        if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value):
            raise SearchRangeError(name, owner, number, value)
    if space.low > space.high:
        raise SearchRangeError("low", owner, f"at most high, {space.high!r}", space.low)
    if space.log and space.low <= 0:
        raise SearchRangeError("low", owner, "above 0 with log=True", space.low)
