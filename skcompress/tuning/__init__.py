"""Optuna over everything: the only part of the package that imports it."""

from .suggest import suggest_estimator, suggest_params

__all__ = ["suggest_estimator", "suggest_params"]
