"""Plugins that are not there, or not what they should be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .base import SkcompressError, suggestion


class UnknownNameError(SkcompressError, ValueError):
    """A plugin name or kind that nobody registered."""

    def __init__(self, kind: str, name: str, known: Sequence[str]):
        super().__init__(f"no {kind} is named {name!r}; {suggestion(name, known)}")


class PluginConflictError(SkcompressError, ValueError):
    """Two packages registered the same name."""

    def __init__(self, kind: str, name: str, packages: Iterable[str]):
        listed = " and ".join(sorted(map(repr, packages)))
        super().__init__(
            f"{name!r} of {kind} is registered by {listed}: uninstall one of them, "
            "or pass an instance instead of the name"
        )


class PluginLoadError(SkcompressError, ImportError):
    """A plugin whose module cannot be imported."""

    def __init__(self, kind: str, name: str, package: str, cause: BaseException):
        super().__init__(
            f"{name!r} of {kind}, provided by package {package!r}, could not be loaded: "
            f"{type(cause).__name__}: {cause}. Reinstall or remove {package!r}"
        )


class PluginTypeError(SkcompressError, TypeError):
    """A plugin, or an instance, that is not what its kind asks for."""

    def __init__(self, kind: str, received: object, expected: tuple[type, ...]):
        what = (
            f"the class {received.__qualname__}"
            if isinstance(received, type)
            else f"{received!r} of type {type(received).__name__}"
        )
        hint = (
            "; pass an instance of it, not the class"
            if isinstance(received, type) and issubclass(received, expected)
            else ""
        )
        known = " or ".join(f"skcompress.protocols.{e.__qualname__}" for e in expected)
        super().__init__(f"{kind} must be names or instances of {known}; got {what}{hint}")


class LayerKindConflictError(SkcompressError, ValueError):
    """Two kinds of layer that both take a module, and neither knows its class better."""

    def __init__(self, module: str, kinds: Sequence[str]):
        listed = " and ".join(map(repr, kinds))
        super().__init__(
            f"the layer kinds {listed} both take a {module}: uninstall the package of one of them, "
            "or let one name a more derived class in its types"
        )


class MissingPluginError(SkcompressError, ImportError):
    """A public name of a plugin package that is not installed."""

    def __init__(self, name: str, package: str):
        super().__init__(
            f"skcompress.{name} is provided by the package {package}: install it, "
            f"`pip install {package}`, or in a checkout `pip install -e plugins/{package}`"
        )


class NotInstalledError(SkcompressError, RuntimeError):
    """The package runs from a folder without metadata, so it has no entry points."""

    def __init__(self) -> None:
        super().__init__(
            "skcompress is imported from a folder that was never installed, so it cannot "
            "find its plugins: run `pip install -e .` in the checkout"
        )
