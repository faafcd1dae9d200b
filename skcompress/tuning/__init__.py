"""Optuna over everything: the only part of the package that imports it."""

from .search import CompressionSearch
from .suggest import suggest_estimator, suggest_params

__all__ = ["CompressionSearch", "suggest_estimator", "suggest_params"]
