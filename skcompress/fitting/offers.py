"""What the candidates of a weight cost: options that an allocation chooses from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from ..layers import kind_of
from ..layers.chain import merge_groups, merge_stages
from ..network.calls import Call, costed
from ..network.weights import Site
from ..plan import LayerPlan
from ..protocols import (
    Cost,
    Curve,
    Decomposition,
    Factors,
    Layer,
    Options,
    Rank,
    Stage,
    Storage,
)
from .candidates import Candidate, Findings

NO_SPARSE = "layers of this kind take no sparse term"


@dataclass(frozen=True)
class Offer:
    """A candidate, stored in one way.

    scheme : name of the way the weight is cut up and stored, as the report shows it
    curve : of the candidate, with costs in the unit of the budget, by ascending cost
    numbers : int array (n,), stored numbers of each option of the curve
    """

    candidate: Candidate
    storage: Storage
    scheme: str
    curve: Curve
    numbers: np.ndarray

    def factors(self, weight: Tensor, rank: Rank) -> Factors:
        """Give what is stored of the weight (groups, out, in, *kernel)."""
        return stored(self.candidate.factors(weight, rank), self.storage)

    def stages(self, shape: Sequence[int], rank: Rank) -> tuple[Stage, ...]:
        """Shapes of what is stored of each group, a weight (out, in, *kernel)."""
        return self.storage.stages(self.candidate.decomposition.stages(shape, rank))


def stored(parts: Sequence[Factors], storage: Storage) -> Factors:
    """Put together what is stored of the factors of each group."""
    return merge_groups([storage.stored(part) for part in parts])


@dataclass(frozen=True)
class WeightOffers:
    """All options of one weight.

    dense : its cost as it is; offers : competing; reason : why there are none
    """

    name: str
    dense: float
    offers: tuple[Offer, ...]
    reason: str | None = None

    def saved(self, row: LayerPlan) -> float:
        """What a plan saves of the weight's cost."""
        if row.rank is None:
            return 0.0
        curve = next(o.curve for o in self.offers if o.scheme == row.scheme)
        option = next(i for i in range(len(curve.costs)) if curve.rank_at(i) == row.rank)
        return float(self.dense - curve.costs[option])

    def spectrum(self, scheme: str | None) -> np.ndarray | tuple[np.ndarray, ...] | None:
        """Singular values of the scheme that was chosen, or of the first; several for a Tucker."""
        if not self.offers:
            return None
        chosen = next((o for o in self.offers if o.scheme == scheme), self.offers[0])
        values = tuple(spectrum.values for spectrum in chosen.curve.spectra)
        return values[0] if len(values) == 1 else values or None

    def layer(self, importance: float) -> Layer:
        """What an allocation sees."""
        return Layer(self.name, self.dense, tuple(o.curve for o in self.offers), importance)


def offered(
    site: Site,
    findings: Findings,
    storages: Sequence[Storage],
    cost: Cost,
    calls: Mapping[str, Sequence[Call]] | None,
) -> WeightOffers:
    """Give every option of a weight.

    storages : the first that its layers can do with is taken; the last suits everywhere
    calls : of layers, where the cost needs inputs
    """
    weight = costed(site, calls)
    reason = findings.reason or (cost.refusal(weight) if findings.candidates else None)
    dense = 0 if reason is not None else cost.of_weight(weight)
    storage = _first_suitable(storages, site)
    offers = []
    for candidate in findings.candidates if reason is None else ():
        options = _options(candidate, storage, site.slot.shape)
        costs = np.asarray(cost.of_options(weight, options))
        # Nothing is to store more numbers than it did, whatever the budget is one of.
        costs = np.where(options.numbers < weight.numbers, costs, np.maximum(costs, dense))
        curve = candidate.curve
        order = np.lexsort((curve.errors, costs))
        # Where there is nothing to leave out, factors are stored as they are.
        suffix = storage.suffix if (options.numbers < curve.costs).any() else ""
        by_cost = replace(
            curve, ranks=curve.ranks[order], costs=costs[order], errors=curve.errors[order]
        )
        scheme = f"{curve.scheme}{suffix}"
        offers.append(Offer(candidate, storage, scheme, by_cost, options.numbers[order]))
    return WeightOffers(site.name, dense, tuple(offers), reason)


def storable(able: Sequence[Decomposition], site: Site) -> list[Decomposition]:
    """Give the decompositions whose factors all layers of a weight can hold.

    able : those that can cut it up
    """
    kinds = [kind_of(module) for module in site.modules]
    takes_sparse = all(kind is not None and kind.takes_sparse for kind in kinds)
    return [d for d in able if takes_sparse or not d.adds_sparse]


def _first_suitable(storages: Sequence[Storage], site: Site) -> Storage:
    """The first storage that all layers of a weight can do with; the last suits everywhere."""
    kinds = [kind_of(module) for module in site.modules]
    takes_pivots = all(kind is not None and kind.takes_pivots for kind in kinds)
    return next((s for s in storages if takes_pivots or not s.leaves_pivots), storages[-1])


def _options(candidate: Candidate, storage: Storage, shape: tuple[int, ...]) -> Options:
    curve, groups = candidate.curve, shape[0]

    def factors(option: int) -> tuple[Stage, ...]:
        return candidate.decomposition.stages(shape[1:], curve.rank_at(option))

    def kept(option: int) -> tuple[Stage, ...]:
        return merge_stages(storage.stages(factors(option)), groups)

    chains = map(factors, range(len(curve.costs)))
    return Options(groups * storage.numbers(curve.costs // groups, chains), kept)
