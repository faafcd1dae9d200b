"""What a fit decided for one weight, and what becomes of the weight by it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from ...fitting.digests import Fingerprint
from ...masks import masked


@dataclass(frozen=True)
class PrunedWeight:
    """One weight (groups, out, in, *kernel) and which of its values stay.

    fingerprint : of the weight that was fitted
    bits : uint8 array, a bit for each value, set where it stays
    values : those that stay, in order, where they are other than the weight's own
    offset : what is to be added to the outputs of `offset_to`, a layer with bias or the batch
        normalisation after one; None for nothing
    """

    name: str
    shape: tuple[int, ...]
    fingerprint: Fingerprint
    bits: np.ndarray
    values: Tensor | None = None
    offset: Tensor | None = None
    offset_to: str | None = None

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

    def applied(self, weight: Tensor) -> Tensor:
        """Give the weight as pruned, a new tensor; `weight` is the one that was fitted."""
        kept = self.kept(weight.device)
        if self.values is None:
            return masked(weight, kept)
        result = torch.zeros_like(weight)
        result[kept] = self.values.to(weight)
        return result
