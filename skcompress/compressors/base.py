"""What all low-rank compressors share: fit, plan, replace."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
from sklearn.base import clone
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    InvalidParameterError,
    StrOptions,
)
from sklearn.utils.validation import check_is_fitted
from torch import nn

from .. import registry
from ..decompositions.pivoted import Pivoted
from ..fitting.calibrated import Calibration, foldable_norms
from ..fitting.choosing import best_outcome
from ..fitting.factorizing import FactorizedSite, factorize_sites
from ..fitting.fitting import Fitting, set_norms, trimmed
from ..fitting.pivoting import NO_SPARSE, prefer_pivots, storable
from ..fitting.planning import asked_ranks, compare_to_plan, rank_patterns, restore_ties
from ..fitting.regressing import regress_sites
from ..fitting.replacing import replaced
from ..fitting.sharing import Known, Shared
from ..fitting.steps import Steps
from ..fitting.workload import workload
from ..layers import densify
from ..metrics import count_parameters
from ..network.batches import batches as as_batches
from ..network.batches import device_of
from ..network.calls import count_calls
from ..network.normalization import fold
from ..network.weights import Site, check_model, check_patterns, require_sites, select
from ..plan import Plan, Report
from ..protocols import Allocation, Compressor, Decomposition
from ..spaces import FloatRange, Options, Plugins, SearchSpace
from .checks import PATTERNS, RANKS, check_rank, rank_allocation, require_support, seeded, uses_data


@contextmanager
def without_autocast() -> Iterator[None]:
    """Keep the caller's autocast out of the mathematics: in half precision it would be lost."""
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


class FactorizingCompressor(Compressor):
    """Replaces every layer by a chain of thinner ones: all but which decompositions.

    Parameters and learnt attributes are written up in :class:`LowRankCompressor`.
    """

    _own: Shared | None = None  # results that warm_start keeps

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "rank": [*RANKS, dict],
        "allocation": [str, HasMethods("allocate"), HasMethods("divide")],
        "cost": [StrOptions({"parameters", "flops"})],
        "metric": [StrOptions({"auto", "weights", "activations", "fisher"})],
        "pivot": ["boolean"],
        "reconstruction": [StrOptions({"auto", "independent", "sequential"})],
        "sensitivity": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
        "refit_dense": ["boolean"],
        "recalibrate_norm": ["boolean", StrOptions({"auto"})],
        "fold_norm": ["boolean"],
        "measure": ["boolean"],
        "calibration_memory": [Interval(Real, 0, None, closed="neither")],
        "max_positions": [None, Interval(Integral, 1, None, closed="left")],
        "layers": PATTERNS,
        "exclude": PATTERNS,
        "device": [None, str, torch.device],
        "random_state": ["random_state"],
        "n_jobs": [None, Integral],
        "warm_start": ["boolean"],
        "verbose": ["verbose"],
    }
    search_space: ClassVar[SearchSpace] = {
        "rank": FloatRange(0.1, 0.9),
        # To "energy" the rank is a fraction of something else, and "auto" has no use for it.
        "allocation": Plugins("allocations", leave_out=("auto", "energy"), protocol=Allocation),
        "pivot": Options((False, True)),
        "metric": Options(("activations", "fisher"), needs_data=True),
        "reconstruction": Options(("independent", "sequential"), needs_data=True),
        "sensitivity": FloatRange(0.0, 1.0, needs_data=True),
        "refit_dense": Options((False, True), needs_data=True),
        "fold_norm": Options((False, True), needs_data=True),
    }

    def __init__(
        self,
        rank: Any = 0.3,
        *,
        allocation: Any = "global",
        cost: str = "parameters",
        pivot: bool = False,
        metric: str = "auto",
        reconstruction: str = "auto",
        sensitivity: Any = 0.0,
        refit_dense: bool = False,
        recalibrate_norm: Any = "auto",
        fold_norm: bool = False,
        measure: bool = True,
        calibration_memory: float = 2**31,
        max_positions: int | None = None,
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
        self.cost = cost
        self.pivot = pivot
        self.metric = metric
        self.reconstruction = reconstruction
        self.sensitivity = sensitivity
        self.refit_dense = refit_dense
        self.recalibrate_norm = recalibrate_norm
        self.fold_norm = fold_norm
        self.measure = measure
        self.calibration_memory = calibration_memory
        self.max_positions = max_positions
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

    @without_autocast()
    @torch.no_grad()
    def fit(self, model: nn.Module, data: object = None) -> FactorizingCompressor:
        """Factorise every layer and divide the budget; `model` stays as it is.

        model : torch.nn.Module with values
        data : unlabelled inputs, for the metric of the activations: a tensor, an array, a
            DataLoader, or any iterable of batches that can be read again. A batch is a
            tensor, a tuple or list whose first item is the input, or a dict of keyword
            inputs. The metric of the weights does not use it; a budget of FLOPs uses the
            shapes of its first batch.
        """
        self._validate_params()
        owner = type(self).__name__
        check_rank(owner, self.rank)
        rank_allocation(owner, self.allocation)
        calibrated = uses_data(self, data)
        check_model(owner, model)
        check_patterns("layers", self.layers, model)
        check_patterns("exclude", self.exclude, model)
        check_patterns("rank", rank_patterns(self.rank), model)
        selection = select(model, self.layers, self.exclude)
        require_sites(owner, selection)

        steps = Steps(device_of(model))
        shared = self._results()
        n_in, given, counted = count_parameters(model), None, None
        folded: dict[str, str] = {}
        if calibrated or self.cost == "flops":
            batches = as_batches(owner, data, model)
            known = Known.about(shared, model, data)
        if calibrated:
            with steps("observe"):
                given = Calibration.observed(
                    batches,
                    model,
                    selection.sites,
                    known,
                    memory=self.calibration_memory,
                    max_positions=self.max_positions,
                    random_state=self.random_state,
                    fisher=self.metric == "fisher",
                )
                if self.fold_norm:
                    folded = foldable_norms(model, given.norms)
                    model, given = fold(model, folded), given.without(folded)
                    selection = select(model, self.layers, self.exclude)
        # Before the factorisations: what is wrong with the data shows in seconds.
        if self.cost == "flops":
            names = (name for site in selection.sites for name, _ in site.users)
            key = known.but("folded", *sorted(folded)).key("calls", *names)
            counted = shared.get(key, lambda: count_calls(model, selection.sites, batches))
        if given is not None and (self.sensitivity or given.fisher):
            with steps("differentiate"):
                given = given.with_gradients(model, selection.sites, self.verbose)
        decompositions = self._resolved_decompositions()
        with steps("factorize"):
            sites = self._factorized_sites(model, selection.sites, decompositions, given, shared)
        require_support(owner, sites, decompositions)
        work = None
        if counted is not None:
            work = workload(selection.sites, sites, decompositions, *counted)
        fitting = Fitting(model, selection, sites, decompositions, given, work, self.device)
        outcome, divergence, measured = best_outcome(
            fitting,
            steps,
            self.rank,
            rank_allocation(owner, self.allocation),
            sensitivity=self.sensitivity,
            sequential=self.reconstruction != "independent",
            dense=self.refit_dense,
            recalibrate=self.recalibrate_norm,
            measure=self.measure,
            verbose=self.verbose,
        )

        plan: Plan = outcome.plan
        self.plan_ = plan
        self.ranks_ = {p.name: p.rank for p in plan if p.rank is not None}
        self.spectra_ = {s.name: v for s, c in zip(sites, outcome.choices, strict=True)
                         if (v := s.spectrum(c)) is not None}  # fmt: skip
        self.n_parameters_in_ = n_in
        self.n_parameters_out_ = count_parameters(model) - sum(p.before - p.after for p in plan)
        for name in ("n_flops_in_", "n_flops_out_"):  # of an earlier fit
            self.__dict__.pop(name, None)
        if outcome.flops is not None:
            self.n_flops_in_, self.n_flops_out_ = outcome.flops
        self.report_ = Report(
            plan,
            self.n_parameters_in_,
            self.n_parameters_out_,
            outcome.flops,
            steps=tuple(steps.done),
            divergence=divergence,
            measured=measured,
        )
        self._patterns = (self.layers, self.exclude)
        self._decompositions = decompositions
        self._calibrated, self._folded = calibrated, folded
        self._norms, self._fits = outcome.norms, outcome.fits
        self._factorized = {site.name: site for site in trimmed(sites, outcome)}
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
        if not (self._results().memory or self._calibrated):
            self._factorized = {}
        # Each factorisation is let go as soon as its factors exist, so that at no time
        # all of both are held.
        with torch.no_grad():
            return self._replaced(model, lambda name: known.pop(name, None))

    def inverse_transform(self, model: nn.Module) -> nn.Module:
        """Give a copy of a compressed `model` with ordinary dense layers; same function."""
        return densify(check_model(type(self).__name__, model))

    @without_autocast()
    def _replaced(
        self, model: nn.Module, known: Callable[[str], FactorizedSite | None]
    ) -> nn.Module:
        check_model(type(self).__name__, model)
        if self._folded:
            model = fold(model, self._folded)
        selection = select(model, *self._patterns)
        restore_ties(self.plan_, selection)
        compare_to_plan(self.plan_, selection)
        result = replaced(
            model,
            selection,
            self.plan_,
            known,
            self._decompositions,
            self.device,
            calibrated=self._calibrated,
        )
        set_norms(result, self._norms)
        return result

    def _factorized_sites(
        self,
        model: nn.Module,
        sites: Sequence[Site],
        decompositions: Mapping[str, Decomposition],
        given: Calibration | None,
        shared: Shared,
    ) -> list[FactorizedSite]:
        """Do the expensive step for every weight, in the metric that there are inputs for."""
        able = {s.name: self._competing(decompositions, s.slot.shape[1:]) for s in sites}
        competing = {
            site.name: prefer_pivots(storable(able[site.name], site), decompositions, site)
            for site in sites
        }

        def compete(site: Site) -> list[Decomposition]:
            return competing[site.name]

        if given is not None:
            asked = asked_ranks(self.rank)
            found = regress_sites(
                model, sites, given, compete, self.device, self.verbose, asked=asked
            )
        else:
            found = factorize_sites(sites, compete, shared, self.device, self.n_jobs, self.verbose)
        return [
            replace(known, reason=NO_SPARSE)
            if able[known.name] and not competing[known.name]
            else known
            for known in found
        ]

    def _results(self) -> Shared:
        """What this fit shares: with others, with earlier ones of its own, or nothing."""
        if self._shared is not None:
            return self._shared
        if not self.warm_start:
            self._own = None
            return Shared(memory=0)
        self._own = self._own or Shared()
        return self._own

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_own"}

    def _resolved_decompositions(self) -> dict[str, Decomposition]:
        """Instances by scheme, seeded where they draw random numbers."""
        random_state = check_random_state(self.random_state)
        resolved: dict[str, Decomposition] = {}
        for candidate in self._candidates():
            decomposition: Any = clone(registry.make("decompositions", candidate))
            pivot = self.pivot or isinstance(decomposition, Pivoted)
            if isinstance(decomposition, Pivoted):
                decomposition = decomposition.decomposition
            seeded(decomposition, random_state)
            if decomposition.scheme in resolved:
                raise InvalidParameterError(
                    f"The 'decomposition' parameter of {type(self).__name__} must be "
                    f"decompositions with schemes of different names. Got "
                    f"{decomposition.scheme!r} twice instead."
                )
            resolved[decomposition.scheme] = decomposition
            if pivot:
                pivoted = Pivoted(decomposition)
                resolved[pivoted.scheme] = pivoted
        return resolved
