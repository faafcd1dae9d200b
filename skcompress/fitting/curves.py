"""Curves of several weights together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..protocols import Curve, Spectrum


def merge_curves(curves: Sequence[Curve]) -> Curve:
    """Curve of several weights that get the same rank: costs and errors add up."""
    if len(curves) == 1:
        return curves[0]
    first = curves[0]
    # Options may depend on the weight: keep the ranks that every group offers.
    tables = [{c.rank_at(i): i for i in range(len(c.costs))} for c in curves]
    shared = [rank for rank in tables[0] if all(rank in table for table in tables)]
    places = [[table[rank] for rank in shared] for table in tables]
    spectra = tuple(
        Spectrum(np.stack([s.values for s in same]), same[0].shape)
        for same in zip(*(c.spectra for c in curves), strict=True)
    )
    return replace(
        first,
        ranks=first.ranks[places[0]],
        costs=np.sum([c.costs[p] for c, p in zip(curves, places, strict=True)], axis=0),
        errors=np.sum([c.errors[p] for c, p in zip(curves, places, strict=True)], axis=0),
        total=sum(c.total for c in curves),
        spectra=spectra,
    )
