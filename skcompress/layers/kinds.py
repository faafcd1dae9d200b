"""Which kind of layer a module is, of all kinds that installed packages register."""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from torch import nn

from .. import registry
from ..errors import LayerKindConflictError, PluginLoadError, PluginTypeError
from ..protocols import LayerKind

# Seconds after which packages that were installed meanwhile are looked for.
_FRESH = 1.0


@dataclass
class _Known:
    """Kinds by name; by class of module, those that may take it and how near they are to it.

    asked, path : when the installed packages were last looked at, and where
    """

    asked: float = -_FRESH
    path: tuple[str, ...] = ()
    installed: object = None
    kinds: dict[str, LayerKind] = field(default_factory=dict)
    of_type: WeakKeyDictionary[type, list[tuple[int, str]]] = field(
        default_factory=WeakKeyDictionary
    )


_known = _Known()


def layer_kinds() -> dict[str, LayerKind]:
    """Every registered kind by its name; one that cannot be loaded is warned of, and missing."""
    now, path = time.monotonic(), tuple(sys.path)
    if now - _known.asked >= _FRESH or path != _known.path:
        _known.asked, _known.path = now, path
        installed = registry.installed()
        if installed != _known.installed:
            _known.kinds = _loaded()
            _known.of_type = WeakKeyDictionary()
            _known.installed = installed
    return _known.kinds


def _loaded() -> dict[str, LayerKind]:
    kinds = {}
    for name in registry.names("layers"):
        try:
            kinds[name] = registry.make("layers", name)
        except (PluginLoadError, PluginTypeError) as error:
            warnings.warn(f"{error}; layers of this kind stay as they are", stacklevel=2)
    return kinds


def kind_of(module: nn.Module) -> LayerKind | None:
    """Find the kind of a layer; None where it is none that has weights to factorise.

    Of several, the one whose `types` has the class that is nearest to the module's own; a kind
    that tells its modules by what they hold comes after all that know the class.

    Raises
    ------
    LayerKindConflictError : two kinds are equally near
    """
    kinds = layer_kinds()
    cls = type(module)
    near = _known.of_type.get(cls)
    if near is None:
        near = sorted((_distance(cls, kind), name) for name, kind in kinds.items())
        near = [found for found in near if found[0] <= len(cls.__mro__)]
        _known.of_type[cls] = near
    best: tuple[int, str] | None = None
    for distance, name in near:
        if best is not None and distance > best[0]:
            break
        if kinds[name].matches(module):
            if best is not None:
                raise LayerKindConflictError(cls.__name__, [best[1], name])
            best = (distance, name)
    return None if best is None else kinds[best[1]]


def _distance(cls: type, kind: LayerKind) -> int:
    """How far up a class the nearest of the kind's types is; beyond all of them for none."""
    if not kind.types:
        return len(cls.__mro__)
    known = [number for number, base in enumerate(cls.__mro__) if base in kind.types]
    return known[0] if known else len(cls.__mro__) + 1
