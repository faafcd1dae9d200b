"""Scikit-learn estimators that train smooth networks and compress what they trained.

The only part of the package that imports skorch, on whose nets they are built.
"""

try:
    import skorch  # noqa: F401
except ImportError as cause:
    raise ImportError(
        "SmoothClassifier and SmoothRegressor need skorch, which is not installed: "
        "pip install 'skcompress[train]'"
    ) from cause

from .estimators import SmoothClassifier, SmoothRegressor

__all__ = ["SmoothClassifier", "SmoothRegressor"]
