"""From what estimators declare, and what the caller changes of it, to the parameters searched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from optuna.distributions import BaseDistribution

from .. import registry
from ..errors import (
    NothingToSearchError,
    SearchDeclarationError,
    SearchRangeError,
    UnknownParameterError,
)
from ..spaces import FloatRange, IntRange, Options, Plugins, Space, declared_space, is_space
from .parameters import Parameter, Parameters, is_estimator

_NOT_GIVEN = object()


def search_space(
    estimator: Any,
    only: str | Iterable[str] | None = None,
    override: Mapping[str, Any] | None = None,
    *,
    with_data: bool = False,
) -> Parameters:
    """Give all that is searched of an estimator; arguments as for `suggest_params`.

    Of a mapping of name -> estimator, the choice between them too, under the name "estimator".
    """
    asked = _Asked(only, override, with_data)
    if isinstance(estimator, Mapping):
        owner, here = "the estimators", _Place("estimator", ("estimator",))
        everything = _drawn(here, Options(estimator), asked, named=True)
    else:
        owner = type(estimator).__name__
        everything = list(_inside(estimator, asked, _Place("", ("",))))
    asked.require_all(owner)
    if not everything:
        raise NothingToSearchError(owner)
    return Parameters(sorted(everything, key=lambda parameter: parameter.name))


@dataclass(frozen=True)
class _Place:
    """Where in an estimator: name in the study, path for `set_params`, choices on the way.

    within : kinds of plugins that it is a choice of, which are not chosen again inside
    """

    name: str
    path: tuple[str, ...]
    when: tuple[tuple[str, Any], ...] = ()
    within: frozenset[str] = frozenset()

    def then(self, text: str) -> _Place:
        """Go on behind it, by the same words in the study and in `set_params`."""
        *above, key = self.path
        return replace(self, name=self.name + text, path=(*above, key + text))

    def chosen(self, label: Any, kind: str, *, by_name: bool) -> _Place:
        """Go into what a choice stands for.

        by_name : whether settings go beside its name (`key__setting`) instead of into an instance
        """
        *above, key = self.path
        return _Place(
            name=f"{self.name}.{label}.",
            path=(*above, f"{key}__") if by_name else (*self.path, ""),
            when=(*self.when, (self.name, label)),
            within=self.within | {kind},
        )


class _Asked:
    """What the caller wants searched, and which of their names and patterns fit something."""

    def __init__(self, only: Any, override: Any, with_data: bool):
        self.override = {} if override is None else override
        if not isinstance(self.override, Mapping):
            rule = "a mapping of names to ranges, lists of choices or values"
            raise SearchRangeError("override", "suggest_params", rule, override)
        for name, given in self.override.items():
            if isinstance(given, BaseDistribution):
                rule = "a range of skcompress.spaces, a list of choices or a value"
                raise SearchRangeError(f"override[{name!r}]", "suggest_params", rule, given)
        self.only = (only,) if isinstance(only, str) else None if only is None else tuple(only)
        self.with_data = with_data
        self._met: dict[str, bool] = {}  # names, and whether they need data that is not there
        self._fit: set[str] = set()

    def given(self, name: str, *, declared: bool) -> Any:
        """What `override` has for a parameter; patterns are for declared ones."""
        fitting = [p for p in self.override if declared and fnmatchcase(name, p)]
        if name in self.override:
            fitting = [name]
        self._fit.update(fitting)
        return self.override[fitting[-1]] if fitting else _NOT_GIVEN

    def selects(self, name: str, space: Space) -> bool:
        """Whether a parameter with this range is to be searched."""
        if name in self.override:
            self._met[name] = False
            return True
        self._met[name] = self.lacks_data(space)
        if self._met[name] or self.only is None:
            return not self._met[name]
        fitting = [pattern for pattern in self.only if fnmatchcase(name, pattern)]
        self._fit.update(fitting)
        return bool(fitting)

    def lacks_data(self, space: Space) -> bool:
        """Whether a range needs data, and there is none."""
        return space.needs_data and not self.with_data

    def settings_below(self, before: str, parameters: Iterable[str]) -> list[str]:
        """Names `parameter__setting` in `override` that nothing has been met for."""
        rest = {n: n[len(before) :].partition("__") for n in self.override if n.startswith(before)}
        return sorted(
            before + "".join(parts)
            for name, parts in rest.items()
            if parts[2] and parts[0] in parameters and name not in self._fit
        )

    def require_all(self, owner: str) -> None:
        """Refuse names and patterns that fit nothing."""
        for argument, names in (("only", self.only or ()), ("override", self.override)):
            for name in (name for name in names if name not in self._fit):
                hidden = any(needs and fnmatchcase(n, name) for n, needs in self._met.items())
                hint = "it needs data: pass with_data=True" if hidden else ""
                known = sorted(n for n, needs in self._met.items() if not needs)
                raise UnknownParameterError(argument, name, owner, known, hint)


def _inside(estimator: Any, asked: _Asked, at: _Place) -> Iterator[Parameter]:
    """Yield all that is searched of an estimator, and inside it."""
    # Its own parameters; of a pipeline its steps too.
    values = {n: v for n, v in estimator.get_params(deep=True).items() if "__" not in n}
    declared, owner = declared_space(estimator), type(estimator).__name__
    for parameter in declared.keys() - values.keys():
        raise SearchDeclarationError(owner, f"{parameter!r} is no parameter of {owner}")
    for parameter, held in sorted(values.items()):
        here, space = at.then(parameter), declared.get(parameter)
        given = asked.given(here.name, declared=space is not None)
        wanted, value = _as_space(given, space), held
        if wanted is not None:
            if found := _drawn(here, wanted, asked):
                yield from found
                continue
        elif given is not _NOT_GIVEN:
            value = given
            yield Parameter(here.name, here.path, None, value, here.when)
        if is_estimator(value):
            yield from _inside(value, asked, here.then("__"))
        elif isinstance(value, str) and isinstance(space, Plugins):
            plugin, below = registry.make(space.kind, value), here.then("__")
            if not space.by_name:
                below = replace(below, path=(*here.path, ""))
            inner = list(_inside(plugin, asked, below))
            if inner and not space.by_name:
                yield Parameter(here.name, here.path, None, plugin, here.when)
            yield from inner
    # A skorch net takes any setting of its parts, and does not know them before it is fitted.
    parts = values if hasattr(estimator, "prefixes_") else ()
    for name in asked.settings_below(at.name, parts):
        given, here = asked.given(name, declared=False), at.then(name[len(at.name) :])
        wanted = _as_space(given, None)
        if wanted is None:
            yield Parameter(here.name, here.path, None, given, here.when)
        else:
            yield from _drawn(here, wanted, asked)


def _as_space(given: Any, declared: Space | None) -> Any:
    """Give the range or choice that is meant, or a mapping with some in it; None for a value."""
    if given is _NOT_GIVEN:
        return declared
    if isinstance(given, list):
        if isinstance(declared, Plugins) and all(isinstance(n, str | None) for n in given):
            return replace(declared, names=tuple(given), leave_out=(), choose=True)
        return Options(tuple(given))
    if isinstance(given, Mapping):
        return given if any(is_space(entry) for entry in given.values()) else None
    return given if is_space(given) else None


def _drawn(here: _Place, space: Any, asked: _Asked, *, named: bool = False) -> list[Parameter]:
    """Give what is drawn for a parameter, and what hangs on it; nothing if it is not searched.

    named : whether it was asked for
    """
    if isinstance(space, Mapping):
        found = [Parameter(here.name, here.path, None, dict(space), here.when)]
        for entry, part in space.items():
            wanted = _as_space(part, None)
            into = replace(here, name=f"{here.name}.{entry}", path=(*here.path, entry))
            found += [] if wanted is None else _drawn(into, wanted, asked, named=True)
        return found
    kind = space.kind if isinstance(space, Plugins) else ""
    if kind and (not space.choose or kind in here.within):
        return []
    selected = asked.selects(here.name, space) or named
    if isinstance(space, FloatRange | IntRange):
        return [Parameter(here.name, here.path, space, when=here.when)] if selected else []
    if not selected and asked.lacks_data(space):
        return []
    values: dict[Any, Any] = {}
    below: list[Parameter] = []
    for label, value, plugin in _branches(space, asked):
        by_name = bool(kind) and space.by_name
        branch = here.chosen(label, kind, by_name=by_name)
        inner = list(_inside(plugin, asked, branch)) if is_estimator(plugin) else []
        values[label] = plugin if inner and not by_name else value
        below += inner
    if not selected and all(parameter.space is None for parameter in below):
        return []
    installed = bool(kind) and space.names is None
    choice = Parameter(here.name, here.path, Options(values), when=here.when, installed=installed)
    return [choice, *below]


def _branches(space: Options | Plugins, asked: _Asked) -> Iterator[tuple[Any, Any, Any]]:
    """Yield label and value of all that can be chosen, and the plugin that it stands for."""
    if isinstance(space, Options):
        yield from ((label, value, value) for label, value in space.items)
        return
    for label in registry.offered(space, with_data=asked.with_data):
        yield label, label, None if label is None else registry.make(space.kind, label)
