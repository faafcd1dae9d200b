"""The factors that were chosen: of a weight alone, or for what it meets on the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..decompositions.regression import least_squares
from ..network.weights import Site
from ..protocols import Choice, Metric, Rank
from .candidates import working_weight
from .digests import Fingerprint
from .fitted import DenseWeight, FactoredWeight, Recipe, Replacement
from .offers import Offer, WeightOffers, stored
from .refining import refined


class Factoring:
    """Makes what replaces weights, by the options that were chosen.

    choices : of each of the offers; None where a weight stays dense
    seen : fingerprints of the weights, by name
    """

    def __init__(
        self,
        offers: Sequence[WeightOffers],
        choices: Sequence[Choice | None],
        seen: Mapping[str, Fingerprint],
        device: Any,
    ):
        self._chosen: dict[str, tuple[Offer, Rank]] = {}
        self._seen, self._device = seen, device
        for found, choice in zip(offers, choices, strict=True):
            if choice is not None:
                offer = found.offers[choice.curve]
                self._chosen[found.name] = offer, offer.curve.rank_at(choice.option)

    def __contains__(self, name: str) -> bool:
        """Whether a weight gets factors."""
        return name in self._chosen

    def of_weight(self, site: Site) -> FactoredWeight | None:
        """Give the factors of a weight by itself; None where it stays dense."""
        if site.name not in self._chosen:
            return None
        offer, rank = self._chosen[site.name]
        factors = offer.factors(working_weight(site, self._device), rank)
        return FactoredWeight(self._seen[site.name], factors, _recipe(offer, rank))

    def of_inputs(self, site: Site, weight: Tensor, metrics: Sequence[Metric]) -> Replacement:
        """Give what replaces a weight for these inputs and goals: factors, or another weight."""
        seen, pairs = self._seen[site.name], list(zip(weight, metrics, strict=True))
        if site.name not in self._chosen:
            return DenseWeight(seen, torch.stack([least_squares(*pair) for pair in pairs]))
        offer, rank = self._chosen[site.name]
        decomposition = offer.candidate.decomposition
        parts = [
            refined(decomposition.factorize_at(*pair, rank, known).factors(pair[0], rank), pair[1])
            for known, pair in zip(offer.candidate.parts, pairs, strict=True)
        ]
        factors = stored(parts, offer.storage)
        return FactoredWeight(seen, factors, _recipe(offer, rank))


def _recipe(offer: Offer, rank: Rank) -> Recipe:
    return Recipe(offer.candidate.decomposition, offer.storage, rank)
