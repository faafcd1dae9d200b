"""What a low-rank compressor does to a model, asked of it one layer at a time.

The curves of every weight first, then one division of the budget, then factors: each with no
more than one group of layers in memory. The same steps as in `fit` and `transform` of the
compressor without data, and the same numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from sklearn.base import clone
from torch import Tensor, nn

from ..compressors.base import FactorizingCompressor, Method
from ..compressors.checks import computing, require_support, uses_data
from ..errors import CheckpointCompressorError, NonFiniteWeightError
from ..fitting.candidates import Candidate, Findings, working_weight
from ..fitting.choices import choose_options, make_plan
from ..fitting.curves import merge_curves
from ..fitting.fitted import Recipe, parameters
from ..fitting.offers import NO_SPARSE, offered, storable
from ..layers import substitute
from ..network.weights import Selection, Site, require_sites, select
from ..plan import Plan
from ..protocols import Curve, Decomposition, Factors, Storage

# Parameters that no curve depends on: those of nothing at all, and of the division.
_NO_MATTER = {"verbose", "n_jobs", "warm_start", "measure"}
_BUDGET = {"rank", "allocation"}


@dataclass(frozen=True)
class Work:
    """A compressor and the weights of one model that it is to work on."""

    compressor: FactorizingCompressor
    selection: Selection
    method: Method

    @classmethod
    def of(cls, compressor: Any, model: nn.Module) -> Work:
        """Check the settings and find the weights; `model` may be without values."""
        if not isinstance(compressor, FactorizingCompressor):
            raise CheckpointCompressorError(compressor)
        compressor = clone(compressor)
        if compressor.random_state is None:
            compressor.random_state = 0  # the same after an interruption
        method = compressor._checked(model)
        uses_data(compressor, method.cost, None)
        return cls(compressor, select(model, compressor.layers, compressor.exclude), method)

    def competing(self, site: Site) -> list[Decomposition]:
        """Decompositions that compete for a weight."""
        return storable(self._able(site), site)

    def _able(self, site: Site) -> list[Decomposition]:
        return self.compressor._competing(self.method.decompositions, site.slot.shape[1:])

    @computing
    def curves(self, layers: nn.Module, name: str) -> list[Curve]:
        """What each decomposition could do to one weight of `layers`, which have values."""
        site = next(s for s in select(layers).sites if s.name == name)
        weight = working_weight(site, self.compressor.device)
        _check_finite(name, weight)
        return [
            merge_curves([d.factorize(group).curve for group in weight])
            for d in self.competing(site)
        ]

    def plan(self, model: nn.Module, curves: Mapping[str, list[Curve]]) -> Plan:
        """Divide the budget over all weights.

        curves : by the name of the weight
        """
        owner, sites, method = type(self.compressor).__name__, self.selection.sites, self.method
        require_sites(owner, self.selection)
        offers = [
            offered(site, self._findings(site, curves[site.name]), method.storages, method.cost, {})
            for site in sites
        ]
        require_support(owner, sites, offers, method.decompositions)
        layers, rank = [offer.layer(1.0) for offer in offers], self.compressor.rank
        whole = method.cost.of_model(model, (), {})
        choices, reasons = choose_options(
            layers, sites, rank, method.allocation, whole, method.cost
        )
        return make_plan(self.selection, offers, choices, reasons, method.decompositions)

    def _findings(self, site: Site, curves: Sequence[Curve]) -> Findings:
        """What was found out about a weight, of which only the curves were kept."""
        competing = self.competing(site)
        if self._able(site) and not competing:
            return Findings(reason=NO_SPARSE)
        pairs = zip(competing, curves, strict=True)
        return Findings(tuple(Candidate(d, (), curve) for d, curve in pairs))

    @computing
    def applied(self, plan: Plan, layers: nn.Module, selection: Selection) -> nn.Module:
        """Copy a model, or some of its layers, with the planned ones replaced."""
        factors: dict[str, dict[str, Factors]] = defaultdict(dict)
        for site in selection.sites:
            row = plan[site.name]
            if row.scheme is None or row.rank is None:
                continue
            recipe = Recipe(*self._way(row.scheme), row.rank)
            weight = site.slot.read().detach()
            if weight.is_meta:
                made = recipe.without_values(weight)
            else:
                made = recipe.factors(working_weight(site, self.compressor.device))
            held = parameters(made, site, copy=False)
            for module, slot in site.users:
                factors[module][slot] = held
        return substitute(layers, factors)

    def _way(self, scheme: str) -> tuple[Decomposition, Storage]:
        """The decomposition and the storage that a plan calls so."""
        ways = product(self.method.decompositions, self.method.storages)
        return next((d, s) for d, s in ways if f"{d.scheme}{s.suffix}" == scheme)

    def settings(self) -> str:
        """All that the curves depend on, in words."""
        kind = type(self.compressor)
        given = self.compressor.get_params(deep=True)
        kept = {k: v for k, v in given.items() if k.partition("__")[0] not in _NO_MATTER | _BUDGET}
        return f"{kind.__module__}.{kind.__qualname__} {_in_words(kept)}"

    def budget(self) -> str:
        """How the budget is divided, in words."""
        given = self.compressor.get_params(deep=True)
        return _in_words({k: v for k, v in given.items() if k.partition("__")[0] in _BUDGET})


def _in_words(parameters: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in sorted(parameters.items()))


def _check_finite(name: str, weight: Tensor) -> None:
    # A norm passes NaN on and makes no copy.
    if not torch.isfinite(torch.linalg.vector_norm(weight, ord=torch.inf)):
        n_bad = int(weight.numel() - torch.isfinite(weight).sum())
        raise NonFiniteWeightError(name, n_bad, weight.shape)
