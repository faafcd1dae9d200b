"""Laws of pruning criteria."""

from __future__ import annotations

import torch

from ..protocols import Criterion
from .cases import awkward_weights
from .estimators import check_unchanged, checked_estimator
from .spaces import corners


def check_criterion(plugin: Criterion | type[Criterion]) -> None:
    """Check a pruning criterion on awkward weights.

    Laws: scores have the weight's shape, are finite and non-negative, repeat, and leave
    the weight untouched; what its `search_space` declares works.
    """
    criterion: Criterion = checked_estimator(plugin, Criterion)
    name = type(criterion).__name__
    for case, weight in awkward_weights():
        before = weight.clone()
        scores = criterion.scores(weight)
        assert scores.shape == weight.shape, f"{name} on {case}: scores {tuple(scores.shape)}"
        assert torch.isfinite(scores).all(), f"{name} on {case}: scores not finite"
        assert (scores >= 0).all(), f"{name} on {case}: negative scores"
        assert torch.equal(scores, criterion.scores(weight)), f"{name} on {case}: does not repeat"
        check_unchanged(f"{name} on {case}", "scores borrows the weight", before, weight)
        for where, variant, _ in corners(criterion):
            scored = variant.scores(weight)
            good = torch.isfinite(scored).all() and (scored >= 0).all()
            assert good, f"{where} on {case}: scores not finite, or negative"
