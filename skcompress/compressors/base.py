"""What all low-rank compressors share: fit, plan, replace."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import Any, ClassVar

import torch
from sklearn.base import clone
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    InvalidParameterError,
    RealNotInt,
    StrOptions,
    make_constraint,
)
from sklearn.utils.validation import check_is_fitted
from torch import nn

from .. import registry
from ..errors import DataSupportError, NoLayerError
from ..factorized import densify, substitute
from ..metrics import count_parameters
from ..plan import Plan, Report
from ..protocols import Compressor, Decomposition
from ..selection import check_model, check_patterns, require_sites, select
from .factorizing import FactorizedSite, factorize_sites, stage_parameters
from .planning import (
    choose_options,
    compare_to_plan,
    make_plan,
    rank_patterns,
    restore_ties,
    why_unsupported,
)

_PATTERNS = [None, str, type, list, tuple, set]


class FactorizingCompressor(Compressor):
    """Replaces every layer by a chain of thinner ones: all but which decompositions.

    Parameters and learnt attributes are written up in :class:`LowRankCompressor`.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "rank": [
            Interval(RealNotInt, 0, 1, closed="right"),
            Interval(Integral, 1, None, closed="left"),
            StrOptions({"auto"}),
            dict,
        ],
        "allocation": [str, HasMethods("allocate")],
        "metric": [StrOptions({"auto", "weights", "activations", "fisher"})],
        "reconstruction": [StrOptions({"auto", "independent", "sequential"})],
        "layers": _PATTERNS,
        "exclude": _PATTERNS,
        "device": [None, str, torch.device],
        "random_state": ["random_state"],
        "n_jobs": [None, Integral],
        "warm_start": ["boolean"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        rank: Any = 0.3,
        *,
        allocation: Any = "global",
        metric: str = "auto",
        reconstruction: str = "auto",
        layers: Any = None,
        exclude: Any = (),
        device: Any = None,
        random_state: Any = None,
        n_jobs: int | None = None,
        warm_start: bool = False,
        verbose: bool | int = False,
    ):
        self.rank = rank
        self.allocation = allocation
        self.metric = metric
        self.reconstruction = reconstruction
        self.layers = layers
        self.exclude = exclude
        self.device = device
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.warm_start = warm_start
        self.verbose = verbose

    @abstractmethod
    def _candidates(self) -> Iterable[Any]:
        """Decompositions, or names of them, that compete for the layers."""

    def _competing(
        self, decompositions: Mapping[str, Decomposition], shape: Sequence[int]
    ) -> list[Decomposition]:
        """Those of the candidates that compete for a weight (out, in, *kernel)."""
        return [d for d in decompositions.values() if d.unsupported(shape) is None]

    @torch.no_grad()
    def fit(self, model: nn.Module, data: object = None) -> FactorizingCompressor:
        """Factorise every layer and divide the budget; `model` stays as it is.

        model : torch.nn.Module with values
        data : not used by the weights metric
        """
        self._validate_params()
        _check_rank(type(self).__name__, self.rank)
        self._check_data(data)
        check_model(type(self).__name__, model)
        check_patterns("layers", self.layers, model)
        check_patterns("exclude", self.exclude, model)
        check_patterns("rank", rank_patterns(self.rank), model)
        selection = select(model, self.layers, self.exclude)
        require_sites(type(self).__name__, selection)

        decompositions = self._resolved_decompositions()
        allocation = registry.make("allocations", self.allocation)
        sites = factorize_sites(
            selection.sites,
            partial(self._competing, decompositions),
            known=getattr(self, "_factorized", {}) if self.warm_start else {},
            device=self.device,
            n_jobs=self.n_jobs,
            verbose=self.verbose,
        )
        _require_support(type(self).__name__, sites, decompositions)
        n_in = count_parameters(model)
        choices, reasons = choose_options(sites, selection.sites, self.rank, allocation, n_in)
        plan = make_plan(selection, sites, choices, reasons, decompositions)

        self.plan_: Plan = plan
        self.ranks_ = {p.name: p.rank for p in plan if p.rank is not None}
        self.spectra_ = {s.name: v for s, c in zip(sites, choices, strict=True)
                         if (v := s.spectrum(c)) is not None}  # fmt: skip
        self.n_parameters_in_ = n_in
        self.n_parameters_out_ = n_in - sum(p.before - p.after for p in plan)
        self.report_ = Report(plan, self.n_parameters_in_, self.n_parameters_out_)
        self._patterns = (self.layers, self.exclude)
        self._decompositions = decompositions
        if not self.warm_start:
            sites = [s.trimmed(c) for s, c in zip(sites, choices, strict=True)]
        self._factorized: dict[str, FactorizedSite] = {s.name: s for s in sites}
        return self

    @torch.no_grad()
    def transform(self, model: nn.Module) -> nn.Module:
        """Give a copy of `model` with the planned layers replaced.

        model : the fitted model or another one of the same architecture (a later
            checkpoint; a model on the meta device, which gives the structure alone)
        """
        check_is_fitted(self, "plan_")
        return self._replaced(model, self._factorized.get)

    def fit_transform(self, model: nn.Module, data: object = None) -> nn.Module:  # type: ignore[override]
        """`fit`, then `transform` of the same model, with each SVD computed once."""
        self.fit(model, data)
        known = dict(self._factorized)
        if not self.warm_start:
            self._factorized = {}
        # Each factorisation is let go as soon as its factors exist, so that at no time
        # all of both are held.
        with torch.no_grad():
            return self._replaced(model, lambda name: known.pop(name, None))

    def inverse_transform(self, model: nn.Module) -> nn.Module:
        """Give a copy of a compressed `model` with ordinary dense layers; same function."""
        return densify(check_model(type(self).__name__, model))

    def _replaced(
        self, model: nn.Module, known: Callable[[str], FactorizedSite | None]
    ) -> nn.Module:
        check_model(type(self).__name__, model)
        selection = select(model, *self._patterns)
        restore_ties(self.plan_, selection)
        compare_to_plan(self.plan_, selection)
        factors: dict[str, dict[str, Any]] = {}
        for site in selection.sites:
            planned = self.plan_[site.name]
            if planned.rank is None:
                continue
            made = stage_parameters(
                site, planned, known(site.name), self._decompositions, self.device
            )
            for module_name, slot_name in site.users:
                factors.setdefault(module_name, {})[slot_name] = made
        return substitute(model, factors)

    def _resolved_decompositions(self) -> dict[str, Decomposition]:
        """Instances by scheme, seeded where they draw random numbers."""
        random_state = check_random_state(self.random_state)
        resolved: dict[str, Decomposition] = {}
        for candidate in self._candidates():
            decomposition: Any = clone(registry.make("decompositions", candidate))
            if decomposition.get_params().get("random_state", 0) is None:
                decomposition.set_params(random_state=int(random_state.randint(2**31 - 1)))
            if decomposition.scheme in resolved:
                raise InvalidParameterError(
                    f"The 'decomposition' parameter of {type(self).__name__} must be "
                    f"decompositions with schemes of different names. Got "
                    f"{decomposition.scheme!r} twice instead."
                )
            resolved[decomposition.scheme] = decomposition
        return resolved

    def _check_data(self, data: object) -> None:
        owner = type(self).__name__
        if self.metric in ("activations", "fisher"):
            raise DataSupportError(owner, f"metric={self.metric!r}")
        if self.reconstruction == "sequential":
            raise DataSupportError(owner, "reconstruction='sequential'")
        if data is not None and self.metric == "auto":
            raise DataSupportError(owner, "metric='auto' with data")


def _require_support(
    owner: str, sites: Sequence[FactorizedSite], decompositions: Mapping[str, Decomposition]
) -> None:
    """Refuse a model of which no weight can be cut up by any of the decompositions."""
    if not any(site.candidates for site in sites):
        raise NoLayerError(
            owner, [(s.name, why_unsupported(s.shape, decompositions)) for s in sites]
        )


def _check_rank(owner: str, rank: Any) -> None:
    """What parameter constraints cannot say: no bool, and what a dict may hold."""
    allowed = [make_constraint(c) for c in FactorizingCompressor._parameter_constraints["rank"][:3]]
    values = list(rank.values()) if isinstance(rank, dict) else [rank]
    if not values or any(
        isinstance(value, bool) or not any(c.is_satisfied_by(value) for c in allowed)
        for value in values
    ):
        raise InvalidParameterError(
            f"The 'rank' parameter of {owner} must be a float in the range (0.0, 1.0], an int in "
            "the range [1, inf), 'auto', or a non-empty dict of name pattern to these. "
            f"Got {rank!r} instead."
        )
