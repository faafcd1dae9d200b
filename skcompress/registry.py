"""Plugins by kind and name, found through the entry points of installed packages.

`names` reads metadata only; `resolve` imports the one plugin that is asked for. The
groups are `skcompress.decompositions`, `skcompress.allocations` and so on, one for each of
`KINDS`, for our own plugins as for everybody's.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution, entry_points
from typing import Any

from . import protocols
from .errors import (
    NotInstalledError,
    PluginConflictError,
    PluginLoadError,
    PluginTypeError,
    UnknownNameError,
)
from .spaces import Plugins

# Allocations divide ranks, or numbers of values that stay, or both; some criteria take data.
KINDS: dict[str, tuple[type, ...]] = {
    "decompositions": (protocols.Decomposition,),
    "allocations": (protocols.Allocation, protocols.SparsityAllocation),
    "regularizers": (protocols.Regularizer,),
    "criteria": (protocols.Criterion, protocols.DataCriterion),
    "channel_criteria": (protocols.ChannelCriterion,),
    "objectives": (protocols.Objective,),
    "compressors": (protocols.Compressor,),
    "costs": (protocols.Cost,),
    "storages": (protocols.Storage,),
    "layers": (protocols.LayerKind,),
}


def names(kind: str) -> list[str]:
    """Names registered for a kind, sorted. Loads nothing.

    >>> names("allocations")
    ['auto', 'energy', 'erk', 'global', 'rd', 'relative', 'sap', 'uniform']
    """
    return sorted({point.name for point in _entry_points(kind)})


def resolve(kind: str, name: object) -> Any:
    """Give the class registered as `name`, or `name` itself where it is an instance.

    >>> resolve("decompositions", "svd").__name__
    'SVD'

    Raises
    ------
    UnknownNameError : nobody registered the name; the nearest ones are suggested
    PluginConflictError : two packages registered it
    PluginLoadError : its module cannot be imported
    PluginTypeError : it is not of this kind
    """
    expected = _protocol(kind)
    if isinstance(name, expected):
        return name
    if not isinstance(name, str):
        raise PluginTypeError(kind, name, expected)
    points = _entry_points(kind)
    named = [point for point in points if point.name == name]
    if not named:
        raise UnknownNameError(kind, name, sorted({point.name for point in points}))
    packages = {_package(point) for point in named}
    if len(packages) > 1:
        raise PluginConflictError(kind, name, packages)
    try:
        plugin = named[0].load()
    except Exception as cause:
        raise PluginLoadError(kind, name, packages.pop(), cause) from cause
    if not (isinstance(plugin, type) and issubclass(plugin, expected)):
        raise PluginTypeError(kind, plugin, expected)
    return plugin


def make(kind: str, name: object) -> Any:
    """Give an instance: of the class registered as `name`, or `name` itself."""
    plugin = resolve(kind, name)
    return plugin() if isinstance(plugin, type) else plugin


def offered(space: Plugins, *, with_data: bool = True) -> tuple[str | None, ...]:
    """Names that a choice of plugins is between, of those that are installed now.

    with_data : whether those count that say by `needs` what they need to know of data
    """
    if space.names is not None:
        return tuple(name for name in space.names if name not in space.leave_out)
    found = [name for name in names(space.kind) if name not in space.leave_out]
    if space.protocol is not None:
        found = [name for name in found if issubclass(resolve(space.kind, name), space.protocol)]
    if not with_data:
        found = [name for name in found if not getattr(make(space.kind, name), "needs", ())]
    return tuple(found)


def _protocol(kind: str) -> tuple[type, ...]:
    if kind not in KINDS:
        raise UnknownNameError("plugin kind", str(kind), sorted(KINDS))
    return KINDS[kind]


def _entry_points(kind: str) -> list[EntryPoint]:
    _protocol(kind)
    return _scan(f"skcompress.{kind}", installed())


@lru_cache(maxsize=16)
def _scan(group: str, state: object) -> list[EntryPoint]:
    points = list(entry_points(group=group))
    try:
        distribution("skcompress")
    except PackageNotFoundError:
        raise NotInstalledError from None
    return points


def installed() -> tuple[tuple[str, int], ...]:
    """Give what changes whenever a package is installed or removed: the folders on the path."""
    return tuple((p, os.stat(p).st_mtime_ns) for p in sys.path if os.path.isdir(p))


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.module
