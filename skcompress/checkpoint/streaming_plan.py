"""What a low-rank compressor does to a model, asked of it one layer at a time.

The curves of every weight first, then one division of the budget, then factors: each with no
more than one group of layers in memory. The same steps as in `fit` and `transform` of the
compressor without data, and the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.base import clone
from torch import Tensor, nn

from ..compressors.base import FactorizingCompressor, without_autocast
from ..compressors.checks import check_rank, rank_allocation, require_support, uses_data
from ..errors import CheckpointCompressorError, NonFiniteWeightError
from ..fitting.digests import Fingerprint
from ..fitting.factorizing import Candidate, FactorizedSite, merge_curves, working_weight
from ..fitting.pivoting import NO_SPARSE, prefer_pivots, storable
from ..fitting.planning import choose_options, make_plan, rank_patterns
from ..fitting.replacing import replaced
from ..metrics import count_parameters
from ..network.weights import Selection, Site, check_patterns, require_sites, select
from ..plan import Plan
from ..protocols import Curve, Decomposition, Factorization, Factors, Rank

# Parameters that no curve depends on: those of nothing at all, and of the division.
_NO_MATTER = {"verbose", "n_jobs", "warm_start", "measure"}
_BUDGET = {"rank", "allocation"}
_NOWHERE = Fingerprint(0, torch.device("meta"))


class _Known(Factorization):
    """A factorisation of which only the curve was kept."""

    def __init__(self, curve: Curve):
        self.curve = curve

    def factors(self, weight: Tensor, rank: Rank) -> Factors:
        raise NotImplementedError

    def trim(self, rank: Rank) -> Factorization:
        raise NotImplementedError


@dataclass(frozen=True)
class Work:
    """A compressor and the weights of one model that it is to work on."""

    compressor: FactorizingCompressor
    selection: Selection
    decompositions: Mapping[str, Decomposition]

    @classmethod
    def of(cls, compressor: Any, model: nn.Module) -> Work:
        """Check the settings and find the weights; `model` may be without values."""
        if not isinstance(compressor, FactorizingCompressor):
            raise CheckpointCompressorError(compressor)
        compressor = clone(compressor)
        if compressor.random_state is None:
            compressor.random_state = 0  # the same after an interruption
        compressor._validate_params()
        owner = type(compressor).__name__
        check_rank(owner, compressor.rank)
        rank_allocation(owner, compressor.allocation)
        uses_data(compressor, None)
        check_patterns("layers", compressor.layers, model)
        check_patterns("exclude", compressor.exclude, model)
        check_patterns("rank", rank_patterns(compressor.rank), model)
        selection = select(model, compressor.layers, compressor.exclude)
        return cls(compressor, selection, compressor._resolved_decompositions())

    def _able(self, site: Site) -> list[Decomposition]:
        return self.compressor._competing(self.decompositions, site.slot.shape[1:])

    def competing(self, site: Site) -> list[Decomposition]:
        """Decompositions that compete for a weight."""
        return prefer_pivots(storable(self._able(site), site), self.decompositions, site)

    @without_autocast()
    @torch.no_grad()
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
        owner = type(self.compressor).__name__
        found = [
            FactorizedSite(
                site.name,
                tuple(site.slot.shape[1:]),
                site.slot.size,
                _NOWHERE,
                tuple(Candidate([_Known(curve)]) for curve in curves[site.name]),
                reason=NO_SPARSE if self._able(site) and not self.competing(site) else None,
            )
            for site in self.selection.sites
        ]
        require_sites(owner, self.selection)
        require_support(owner, found, self.decompositions)
        choices, reasons = choose_options(
            [known.layer for known in found],
            self.selection.sites,
            self.compressor.rank,
            rank_allocation(owner, self.compressor.allocation),
            count_parameters(model),
        )
        return make_plan(self.selection, found, choices, reasons, self.decompositions)

    @without_autocast()
    @torch.no_grad()
    def applied(self, plan: Plan, layers: nn.Module, selection: Selection) -> nn.Module:
        """Copy a model, or some of its layers, with the planned ones replaced."""
        return replaced(
            layers,
            selection,
            plan,
            lambda name: None,
            self.decompositions,
            self.compressor.device,
            calibrated=False,
        )

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
