"""A search space with all its branches: names as a study stores them, and what to draw.

A name is the parameter's own (`rank`), that of a nested estimator's (`compressor__rank`),
or, for what only one choice has, names that choice (`regularizer.schatten.p`): so one name
never means two ranges. Names are drawn in sorted order, a choice before what hangs on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sklearn.base import clone

from ..spaces import FloatRange, IntRange


@dataclass(frozen=True)
class Leaf:
    """A number from a range.

    name : in the study
    key : as `set_params` takes it
    """

    name: str
    key: str
    space: FloatRange | IntRange

    def draw(self, trial: Any, prefix: str) -> dict[str, Any]:
        space = self.space
        suggest = trial.suggest_float if isinstance(space, FloatRange) else trial.suggest_int
        return {self.key: suggest(prefix + self.name, space.low, space.high, log=space.log)}

    def described(self) -> dict[str, Any]:
        space = self.space
        kind = "float" if isinstance(space, FloatRange) else "int"
        return {self.name: {kind: [space.low, space.high, *(["log"] if space.log else [])]}}


@dataclass(frozen=True)
class Branch:
    """What can be chosen: a value, and where it is an estimator what it declares itself.

    value : as `set_params` takes it; a plugin's name where there is nothing to set
    estimator : the plugin that the branch's parameters are set on; None without any
    """

    value: Any
    estimator: Any = None
    tree: Tree | None = None


@dataclass(frozen=True)
class Choice:
    """One of several branches.

    labels : what the study stores, in order
    branches : of each label
    installed : whether these are all plugins there are, rather than some that were named
    by_name : whether settings go beside a name (`key__setting`) instead of into an instance
    """

    name: str
    key: str
    labels: tuple[Any, ...]
    branches: tuple[Branch, ...]
    installed: bool = False
    by_name: bool = False

    def draw(self, trial: Any, prefix: str) -> dict[str, Any]:
        label = trial.suggest_categorical(prefix + self.name, self.labels)
        branch = self.branches[self.labels.index(label)]
        drawn = {} if branch.tree is None else branch.tree.draw(trial, prefix)
        if self.by_name and isinstance(branch.value, str):
            return {self.key: branch.value, **_below(self.key, drawn)}
        return {self.key: configured(branch, drawn)}

    def described(self) -> dict[str, Any]:
        found: dict[str, Any] = {self.name: {"choices": list(self.labels)}}
        for branch in self.branches:
            if branch.tree is not None:
                found |= branch.tree.described()
        return found


@dataclass(frozen=True)
class Inside:
    """Parameters of a plugin that the estimator has by name, and takes as an instance only."""

    name: str
    key: str
    branch: Branch

    def draw(self, trial: Any, prefix: str) -> dict[str, Any]:
        assert self.branch.tree is not None
        return {self.key: configured(self.branch, self.branch.tree.draw(trial, prefix))}

    def described(self) -> dict[str, Any]:
        assert self.branch.tree is not None
        return self.branch.tree.described()


@dataclass(frozen=True)
class Table:
    """A value that is a dict, of which some entries are drawn.

    entries : node of each, whose key is that of the entry; or its value
    """

    name: str
    key: str
    entries: Mapping[str, Any]

    @property
    def nodes(self) -> list[Node]:
        """Those that are drawn, in sorted order."""
        drawn = [e for e in self.entries.values() if isinstance(e, Leaf | Choice | Inside | Table)]
        return sorted(drawn, key=lambda node: node.name)

    def draw(self, trial: Any, prefix: str) -> dict[str, Any]:
        # In the order that was given: of patterns, the first that matches counts.
        found = dict(self.entries)
        for node in self.nodes:
            found |= node.draw(trial, prefix)
        return {self.key: found}

    def described(self) -> dict[str, Any]:
        return {name: what for node in self.nodes for name, what in node.described().items()}


Node = Leaf | Choice | Inside | Table


@dataclass(frozen=True)
class Tree:
    """All that is searched of one estimator.

    nodes : sorted by name
    fixed : values that are not searched, by key, as `set_params` takes them
    """

    nodes: tuple[Node, ...]
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def draw(self, trial: Any, prefix: str = "") -> dict[str, Any]:
        """Ask `trial` for each name, with `prefix` before it; give what `set_params` takes."""
        drawn = {key: _own(value) for key, value in self.fixed.items()}
        for node in self.nodes:
            drawn |= node.draw(trial, prefix)
        return drawn

    def described(self) -> dict[str, Any]:
        """Ranges and choices by name, of all branches; JSON-able."""
        return {name: what for node in self.nodes for name, what in node.described().items()}

    def restricted(self, labels: Mapping[str, Any]) -> Tree:
        """Keep to these labels, by name of the choice, where all installed plugins are meant.

        Labels that are not there are left out.
        """
        return replace(self, nodes=tuple(_restricted(node, labels) for node in self.nodes))


def configured(branch: Branch, drawn: dict[str, Any]) -> Any:
    """Give a copy of the branch's estimator with what was drawn, or its value without any."""
    if branch.estimator is None or (not drawn and isinstance(branch.value, str)):
        return branch.value
    return clone(branch.estimator).set_params(**drawn)


def _own(value: Any) -> Any:
    """Copy an estimator, on which settings may follow."""
    return clone(value) if hasattr(value, "get_params") and not isinstance(value, type) else value


def _below(key: str, drawn: dict[str, Any]) -> dict[str, Any]:
    return {f"{key}__{name}": value for name, value in drawn.items()}


def _restricted(node: Node, labels: Mapping[str, Any]) -> Node:
    if isinstance(node, Leaf | Table):
        return node
    if isinstance(node, Inside):
        return replace(node, branch=_below_branch(node.branch, labels))
    pairs = list(zip(node.labels, node.branches, strict=True))
    known = labels.get(node.name)
    if node.installed and known is not None:
        by_label = dict(pairs)
        pairs = [(label, by_label[label]) for label in known if label in by_label]
    branches = tuple(_below_branch(branch, labels) for _, branch in pairs)
    return replace(node, labels=tuple(label for label, _ in pairs), branches=branches)


def _below_branch(branch: Branch, labels: Mapping[str, Any]) -> Branch:
    if branch.tree is None:
        return branch
    return replace(branch, tree=branch.tree.restricted(labels))
