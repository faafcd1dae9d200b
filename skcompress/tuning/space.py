"""From what estimators declare, and what the caller changes of it, to the tree of names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from optuna.distributions import BaseDistribution

from .. import registry
from ..errors import (
    EstimatorTypeError,
    NothingToSearchError,
    SearchDeclarationError,
    SearchRangeError,
    UnknownParameterError,
)
from ..spaces import FloatRange, IntRange, Options, Plugins, Space, declared_space, is_space
from .tree import Branch, Choice, Inside, Leaf, Node, Table, Tree

_NOT_GIVEN = object()


def search_space(
    estimator: Any,
    only: str | Iterable[str] | None = None,
    override: Mapping[str, Any] | None = None,
    *,
    with_data: bool = False,
) -> Tree:
    """Give all that is searched of an estimator; arguments as for `suggest_params`."""
    owner = type(estimator).__name__
    if not _is_estimator(estimator):
        raise EstimatorTypeError("suggest_params", estimator)
    asked = _Asked(only, override, with_data)
    tree = _tree(estimator, asked)
    asked.require_all(owner)
    if not tree.nodes and not tree.fixed:
        raise NothingToSearchError(owner)
    return tree


def choice_of(
    estimators: Mapping[str, Any],
    only: str | Iterable[str] | None = None,
    override: Mapping[str, Any] | None = None,
    *,
    with_data: bool = False,
) -> Tree:
    """Give the choice between several estimators, under the name "estimator"."""
    for estimator in estimators.values():
        if not _is_estimator(estimator):
            raise EstimatorTypeError("suggest_estimator", estimator)
    asked = _Asked(only, override, with_data)
    space = Options(estimators)
    asked.selects("estimator", space)
    tree = Tree((_choice("estimator", "estimator", space, asked, frozenset()),))
    asked.require_all("the estimators")
    return tree


class _Asked:
    """What the caller wants searched, and which of their names and patterns fit something."""

    def __init__(self, only: Any, override: Any, with_data: bool):
        if only is not None:
            only = (only,) if isinstance(only, str) else tuple(only)
        override = {} if override is None else override
        if not isinstance(override, Mapping):
            rule = "a mapping of names to ranges, lists of choices or values"
            raise SearchRangeError("override", "suggest_params", rule, override)
        for name, given in override.items():
            if isinstance(given, BaseDistribution):
                rule = "a range of skcompress.spaces, a list of choices or a value"
                raise SearchRangeError(f"override[{name!r}]", "suggest_params", rule, given)
        self._only: tuple[str, ...] | None = only
        self._override = override
        self._with_data = with_data
        self._known: list[str] = []
        self._need_data: list[str] = []
        self._fit: set[str] = set()
        self._included: set[str] = set()

    def given(self, name: str, *, declared: bool) -> Any:
        """What `override` has for a parameter; patterns are for declared ones."""
        if name in self._override:
            self._fit.add(name)
            return self._override[name]
        found = _NOT_GIVEN
        for pattern, given in self._override.items():
            if declared and fnmatchcase(name, pattern):
                self._fit.add(pattern)
                found = given
        return found

    def selects(self, name: str, space: Space) -> bool:
        """Whether a parameter with this range is to be searched."""
        if name in self._override or name in self._included:
            self._known.append(name)
            return True
        if self.lacks_data(space):
            self._need_data.append(name)
            return False
        self._known.append(name)
        if self._only is None:
            return True
        fitting = [pattern for pattern in self._only if fnmatchcase(name, pattern)]
        self._fit.update(fitting)
        return bool(fitting)

    def lacks_data(self, space: Space) -> bool:
        """Whether a range needs data, and there is none."""
        return space.needs_data and not self._with_data

    def include(self, name: str) -> None:
        """Search a part of what was named."""
        self._included.add(name)

    def settings_below(self, before: str, parameters: Iterable[str]) -> list[str]:
        """Names `parameter__setting` in `override` that nothing has been met for."""
        rest = [n[len(before) :] for n in self._override if n.startswith(before)]
        named = [n for n in rest if "__" in n and n.partition("__")[0] in parameters]
        return sorted(n for n in named if before + n not in self._fit)

    def require_all(self, owner: str) -> None:
        """Refuse names and patterns that fit nothing."""
        for argument, names in (("only", self._only or ()), ("override", self._override)):
            for name in names:
                if name not in self._fit:
                    hidden = any(fnmatchcase(known, name) for known in self._need_data)
                    hint = "it needs data: pass with_data=True" if hidden else ""
                    raise UnknownParameterError(argument, name, owner, sorted(self._known), hint)


def _tree(
    estimator: Any,
    asked: _Asked,
    before: str = "",
    key: str = "",
    within: frozenset[str] = frozenset(),
) -> Tree:
    """All that is searched of one estimator.

    before, key : what comes before its parameters, in the study and in `set_params`
    within : kinds of plugins that it is a choice of, which are not chosen again inside
    """
    declared, values = declared_space(estimator), _parameters(estimator)
    for parameter in declared.keys() - values.keys():
        owner = type(estimator).__name__
        raise SearchDeclarationError(owner, f"{parameter!r} is no parameter of {owner}")
    nodes: list[Node] = []
    fixed: dict[str, Any] = {}
    for parameter, held in sorted(values.items()):
        name, path, space = before + parameter, key + parameter, declared.get(parameter)
        value = held
        given = asked.given(name, declared=space is not None)
        wanted = _as_space(given, space)
        if given is not _NOT_GIVEN and wanted is None:
            fixed[path] = value = given
        elif wanted is not None:
            node = _node(name, path, wanted, asked, within)
            if node is not None:
                nodes.append(node)
                continue
        if _holds_plugin(value, space):
            inner = _inside(name, path, value, space, asked, within)
            nodes += inner.nodes
            fixed |= inner.fixed
    # A skorch net takes any setting of its parts, and does not know them before it is fitted.
    for setting in asked.settings_below(before, values if hasattr(estimator, "prefixes_") else ()):
        given = asked.given(before + setting, declared=False)
        wanted = _as_space(given, None)
        if wanted is None:
            fixed[key + setting] = given
        else:
            node = _node(before + setting, key + setting, wanted, asked, within)
            nodes += [] if node is None else [node]
    return Tree(tuple(sorted(nodes, key=lambda node: node.name)), fixed)


def _parameters(estimator: Any) -> dict[str, Any]:
    """Its own parameters; of a pipeline its steps too."""
    return {n: v for n, v in estimator.get_params(deep=True).items() if "__" not in n}


def _as_space(given: Any, declared: Space | None) -> Any:
    """Give the range or choice that is meant; None for a value."""
    if given is _NOT_GIVEN:
        return declared
    if isinstance(given, list):
        if isinstance(declared, Plugins) and all(isinstance(n, str | None) for n in given):
            return replace(declared, names=tuple(given), leave_out=(), choose=True)
        return Options(tuple(given))
    if isinstance(given, Mapping):
        return given if any(is_space(entry) for entry in given.values()) else None
    return given if is_space(given) else None


def _node(name: str, path: str, space: Any, asked: _Asked, within: frozenset[str]) -> Node | None:
    """Give what is drawn for a parameter, or None if nothing is."""
    if isinstance(space, Mapping):
        entries: dict[str, Any] = {}
        for entry, part in space.items():
            wanted = _as_space(part, None)
            asked.include(f"{name}.{entry}")
            node = (
                None if wanted is None else _node(f"{name}.{entry}", entry, wanted, asked, within)
            )
            entries[entry] = part if node is None else node
        return Table(name, path, entries)
    if isinstance(space, Plugins) and not (space.choose and space.kind not in within):
        return None
    selected = asked.selects(name, space)
    if isinstance(space, FloatRange | IntRange):
        return Leaf(name, path, space) if selected else None
    if not selected and asked.lacks_data(space):
        return None
    choice = _choice(name, path, space, asked, within)
    below = any(branch.tree is not None and branch.tree.nodes for branch in choice.branches)
    return choice if selected or below else None


def _choice(
    name: str, path: str, space: Options | Plugins, asked: _Asked, within: frozenset[str]
) -> Choice:
    branches = []
    if isinstance(space, Options):
        labels = space.labels
        for label, value in space.items:
            plugin = value if _is_estimator(value) else None
            branches.append(_branch(f"{name}.{label}.", value, plugin, asked, within))
        return Choice(name, path, labels, tuple(branches))
    labels = registry.offered(space)
    within = within | {space.kind}
    for label in labels:
        plugin = None if label is None else registry.make(space.kind, label)
        branches.append(_branch(f"{name}.{label}.", label, plugin, asked, within))
    return Choice(name, path, labels, tuple(branches), space.names is None, space.by_name)


def _branch(before: str, value: Any, plugin: Any, asked: _Asked, within: frozenset[str]) -> Branch:
    tree = None if plugin is None else _tree(plugin, asked, before, "", within)
    return Branch(value, plugin, tree if tree is not None and (tree.nodes or tree.fixed) else None)


def _holds_plugin(value: Any, space: Space | None) -> bool:
    return _is_estimator(value) or (isinstance(value, str) and isinstance(space, Plugins))


def _inside(
    name: str, path: str, value: Any, space: Any, asked: _Asked, within: frozenset[str]
) -> Tree:
    """What is searched of the plugin or estimator that a parameter holds."""
    if _is_estimator(value):
        return _tree(value, asked, f"{name}__", f"{path}__", within)
    plugin = registry.make(space.kind, value)
    if space.by_name:
        return _tree(plugin, asked, f"{name}__", f"{path}__", within)
    inner = _tree(plugin, asked, f"{name}__", "", within)
    if not inner.nodes and not inner.fixed:
        return inner
    return Tree((Inside(name, path, Branch(value, plugin, inner)),))


def _is_estimator(value: Any) -> bool:
    return hasattr(value, "get_params") and not isinstance(value, type)
