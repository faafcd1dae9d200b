"""What all errors have in common."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class SkcompressError(Exception):
    """Base of every error that this library raises on purpose."""


def suggestion(name: str, known: Sequence[str]) -> str:
    """Name the nearest of the known names, or list them."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(map(repr, near)) + "?"
    if not known:
        return "none is registered"
    shown = ", ".join(map(repr, known[:12])) + (", ..." if len(known) > 12 else "")
    return f"known: {shown}"


def described(received: object) -> str:
    """Say what was passed in place of an instance."""
    if isinstance(received, type):
        return f"the class {received.__qualname__}: pass an instance of it"
    return f"an object of type {type(received).__name__}"
