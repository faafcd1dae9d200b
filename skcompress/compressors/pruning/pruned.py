"""What a fit decided for one weight, and what becomes of the weight by it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from ...fitting.digests import Fingerprint
from ...fitting.fitted import Replacement
from ...masks import masked
from ...protocols import Criterion
from ...ranking import keep_largest
from .patterns import keep_pattern


@dataclass(frozen=True)
class PrunedWeight(Replacement):
    """One weight (groups, out, in, *kernel) and which of its values stay.

    bits : uint8 array, a bit for each value, set where it stays
    values : those that stay, in order, where they are other than the weight's own
    criterion, pattern : by which as many values of another weight stay; None where data took part
    """

    name: str
    shape: tuple[int, ...]
    fingerprint: Fingerprint
    bits: np.ndarray
    values: Tensor | None = None
    criterion: Criterion | None = None
    pattern: tuple[int, int] | None = None

    @classmethod
    def of(cls, name: str, fingerprint: Fingerprint, kept: Tensor) -> PrunedWeight:
        """Describe a weight whose values stay where `kept`, of its shape, is True."""
        bits = np.packbits(kept.reshape(-1).cpu().numpy())
        return cls(name, tuple(kept.shape), fingerprint, bits)

    @property
    def n_kept(self) -> int:
        """How many values stay."""
        return int(np.unpackbits(self.bits).sum())

    def kept(self, device: torch.device) -> Tensor:
        """Where values stay, bool of the weight's shape."""
        flat = np.unpackbits(self.bits, count=prod(self.shape)).view(np.bool_)
        return torch.from_numpy(flat).to(device).reshape(self.shape)

    def value(self, weight: Tensor) -> Tensor:
        kept = self.kept(weight.device)
        if self.values is None:
            return masked(weight, kept)
        result = torch.zeros_like(weight)
        result[kept] = self.values.to(weight)
        return result

    def anew(self, weight: Tensor) -> Tensor:
        assert self.criterion is not None
        scores = torch.stack([self.criterion.scores(group) for group in weight])
        if self.pattern is not None:
            return weight * keep_pattern(scores, self.pattern)
        return weight * keep_largest(scores, self.n_kept)
