"""A search space as a list: names as a study stores them, and where what is drawn goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sklearn.base import clone

from ..spaces import FloatRange, IntRange, Options


@dataclass(frozen=True)
class Parameter:
    """One parameter of an estimator, or of one inside it.

    name : in the study. Its own (`rank`), behind that of what it is inside (`compressor__rank`),
        or behind the choice that it hangs on (`regularizer.schatten.p`): so one name never means
        two ranges
    path : key that `set_params` takes; before it those of values that it is set on
    space : what is drawn from; None for a `value` that is not searched
    when : (name, label) of all choices that it hangs on
    installed : whether these are all plugins there are, rather than some that were named
    """

    name: str
    path: tuple[str, ...]
    space: FloatRange | IntRange | Options | None
    value: Any = None
    when: tuple[tuple[str, Any], ...] = ()
    installed: bool = False

    def draw(self, trial: Any, prefix: str) -> tuple[Any, Any]:
        """Give what a trial stores, and the value that it stands for."""
        space, name = self.space, prefix + self.name
        if space is None:
            return None, self.value
        if isinstance(space, Options):
            label = trial.suggest_categorical(name, space.labels)
            return label, dict(space.items)[label]
        suggest = trial.suggest_float if isinstance(space, FloatRange) else trial.suggest_int
        drawn = suggest(name, space.low, space.high, log=space.log)
        return drawn, drawn

    def described(self) -> dict[str, Any]:
        """Say what is drawn from; JSON-able."""
        if isinstance(self.space, Options):
            return {"choices": list(self.space.labels)}
        assert self.space is not None
        kind = "float" if isinstance(self.space, FloatRange) else "int"
        return {kind: [self.space.low, self.space.high, *(["log"] if self.space.log else [])]}


class Parameters(tuple[Parameter, ...]):
    """What is searched, or set, sorted by name: choices before what hangs on them."""

    __slots__ = ()

    def draw(self, trial: Any, prefix: str = "") -> dict[str, Any]:
        """Ask `trial` for each name, with `prefix` before it; give what `set_params` takes."""
        found: dict[str, Any] = {}
        drawn: dict[str, Any] = {}
        for parameter in self:
            if all(drawn.get(name) == label for name, label in parameter.when):
                drawn[parameter.name], value = parameter.draw(trial, prefix)
                _put(found, parameter.path, value)
        return found

    def described(self) -> dict[str, Any]:
        """Ranges and choices by name; JSON-able."""
        return {p.name: p.described() for p in self if p.space is not None}

    def restricted(self, labels: Mapping[str, Any]) -> Parameters:
        """Keep to these labels, by name of the choice, where all installed plugins are meant."""
        gone: set[tuple[str, Any]] = set()
        kept = []
        for parameter in self:
            name, space = parameter.name, parameter.space
            if gone.intersection(parameter.when):
                continue
            if parameter.installed and name in labels and isinstance(space, Options):
                values = dict(space.items)
                if known := {x: values.pop(x) for x in labels[name] if x in values}:
                    gone |= {(name, label) for label in values}
                    space = Options(known)
            kept.append(replace(parameter, space=space))
        return Parameters(kept)


def is_estimator(value: Any) -> bool:
    """Whether this has parameters of its own."""
    return hasattr(value, "get_params") and not isinstance(value, type)


def _put(found: Any, path: tuple[str, ...], value: Any) -> None:
    """Set a copy of a value, on which others may be set."""
    if is_estimator(value) or isinstance(value, dict):
        value = clone(value) if is_estimator(value) else dict(value)
    *above, key = path
    for name in above:
        found = (found if isinstance(found, dict) else found.get_params())[name]
    if isinstance(found, dict):
        found[key] = value
    else:
        found.set_params(**{key: value})
