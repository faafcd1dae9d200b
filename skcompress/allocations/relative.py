"""The largest scores of all, each relative to those of its own weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..protocols import Prunable, SparsityAllocation
from ..ranking import relative
from .largest import numbers_of_largest


class RelativeScores(SparsityAllocation):
    """Those values stay whose scores are the largest shares of what is not smaller in a weight.

    A score is divided by the sum of the scores of its weight that are not smaller: LAMP's rule for
    magnitudes, for any criterion. Scores of different weights then need not be in one unit, nor of
    one size: what one value does to the outputs of its layer says little about what these do
    further on. Of every weight the largest value counts 1, so that none vanishes.

    References: Lee et al. 2021, arXiv 2010.07611.

    >>> import torch
    >>> of_one, of_other = torch.tensor([[[4.0, 1.0, 1.0]]]), torch.tensor([[[0.02, 0.02, 0.02]]])
    >>> weights = [Prunable(name, (1, 1, 3), 0, scores.clone, scores.clone)
    ...            for name, scores in (("one", of_one), ("other", of_other))]
    >>> RelativeScores().divide(weights, 4)
    [1, 3]
    """

    def divide(self, weights: Sequence[Prunable], n_kept: int) -> list[int]:
        return numbers_of_largest([_in_shares(weight) for weight in weights], n_kept)


def _in_shares(weight: Prunable) -> Prunable:
    # Made anew at every call: held, they would take as much memory as all scores.
    return replace(weight, scores=lambda: relative(weight.scores()))
