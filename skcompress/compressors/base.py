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
from torch import Tensor, nn

from .. import calibration, registry
from ..errors import DataSupportError, MissingDataError, NoLayerError
from ..factorized import densify, substitute
from ..metrics import count_parameters
from ..plan import Plan, Report
from ..protocols import Compressor, Decomposition
from ..selection import Site, check_model, check_patterns, require_sites, select
from .calibrated import regress_sites
from .factorizing import FactorizedSite, factorize_sites, stage_parameters
from .planning import (
    choose_options,
    compare_to_plan,
    make_plan,
    rank_patterns,
    restore_ties,
    why_unsupported,
)
from .sequential import refit

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
        data : unlabelled inputs, for the metric of the activations: a tensor, an array, a
            DataLoader, or any iterable of batches that can be read again. A batch is a
            tensor, a tuple or list whose first item is the input, or a dict of keyword
            inputs. Not used by the metric of the weights.
        """
        self._validate_params()
        _check_rank(type(self).__name__, self.rank)
        calibrated = self._is_calibrated(data)
        check_model(type(self).__name__, model)
        check_patterns("layers", self.layers, model)
        check_patterns("exclude", self.exclude, model)
        check_patterns("rank", rank_patterns(self.rank), model)
        selection = select(model, self.layers, self.exclude)
        require_sites(type(self).__name__, selection)

        decompositions = self._resolved_decompositions()
        allocation = registry.make("allocations", self.allocation)
        batches = calibration.batches(type(self).__name__, data, model) if calibrated else None
        seen_data = (data, _version(data)) if calibrated else None
        same = self.warm_start and _same(seen_data, getattr(self, "_seen_data", None))
        known = getattr(self, "_factorized", {}) if same else {}
        sites = self._factorized_sites(model, selection.sites, decompositions, batches, known)
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
        self._calibrated = calibrated
        self._seen_data = seen_data if self.warm_start else None
        self._fits: dict[str, FactorizedSite] = {}
        if batches is not None and self.reconstruction != "independent":
            self._fits = refit(
                model,
                selection.sites,
                {s.name: s for s in sites},
                plan,
                decompositions,
                batches,
                self.device,
                self.verbose,
            )
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
        return self._replaced(model, {**self._factorized, **self._fits}.get)

    def fit_transform(self, model: nn.Module, data: object = None) -> nn.Module:  # type: ignore[override]
        """`fit`, then `transform` of the same model, with each SVD computed once."""
        self.fit(model, data)
        known = {**self._factorized, **self._fits}
        if not (self.warm_start or self._calibrated):
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
        offsets: dict[str, Tensor] = {}
        for site in selection.sites:
            planned = self.plan_[site.name]
            if planned.rank is None:
                continue
            made, offset = stage_parameters(
                site,
                planned,
                known(site.name),
                self._decompositions,
                self.device,
                calibrated=self._calibrated,
            )
            for module_name, slot_name in site.users:
                factors.setdefault(module_name, {})[slot_name] = made
            if offset is not None:
                offsets[site.users[0][0]] = offset
        result = substitute(model, factors)
        for name, offset in offsets.items():
            result.get_submodule(name).bias.data.add_(offset)  # type: ignore[union-attr, operator]
        return result

    def _factorized_sites(
        self,
        model: nn.Module,
        sites: Sequence[Site],
        decompositions: Mapping[str, Decomposition],
        batches: calibration.Batches | None,
        known: Mapping[str, FactorizedSite],
    ) -> list[FactorizedSite]:
        """Do the expensive step for every weight, in the metric that there are inputs for."""
        compete = partial(self._competing, decompositions)
        if batches is not None:
            return regress_sites(model, sites, batches, compete, known, self.device, self.verbose)
        return factorize_sites(sites, compete, known, self.device, self.n_jobs, self.verbose)

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

    def _is_calibrated(self, data: object) -> bool:
        """Whether data takes part; refuses settings that need it where there is none."""
        owner = type(self).__name__
        if self.metric == "fisher":
            raise DataSupportError(owner, "metric='fisher'")
        calibrated = data is not None and self.metric != "weights"
        for setting, value in (("metric", "activations"), ("reconstruction", "sequential")):
            if getattr(self, setting) == value and not calibrated:
                raise MissingDataError(owner, f"{setting}={value!r}")
        return calibrated


def _version(data: object) -> int | None:
    """Count of a tensor's changes in place; None for other data, which has no such count."""
    return data._version if isinstance(data, Tensor) else None


def _same(one: tuple[Any, int | None] | None, other: tuple[Any, int | None] | None) -> bool:
    """Whether two fits saw the same data: the same object, as it was; or none."""
    if one is None or other is None:
        return one is other
    return one[0] is other[0] and one[1] == other[1]


def _require_support(
    owner: str, sites: Sequence[FactorizedSite], decompositions: Mapping[str, Decomposition]
) -> None:
    """Refuse a model of which no weight can be cut up by any of the decompositions."""
    if not any(site.candidates for site in sites):
        raise NoLayerError(
            owner, [(s.name, s.reason or why_unsupported(s.shape, decompositions)) for s in sites]
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
