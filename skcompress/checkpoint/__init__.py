"""Compressed models on disk: written whole or not at all, read without pickle."""

from .loading import load
from .plain import to_plain
from .saving import save

__all__ = ["load", "save", "to_plain"]
