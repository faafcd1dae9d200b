"""What all low-rank compressors share: fit, plan, replace."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sklearn.base import clone
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import InvalidParameterError
from torch import nn

from .. import registry
from ..errors import DamageWarning
from ..fitting.calibration import Calibration
from ..fitting.candidates import Findings, of_inputs, of_weights, with_every_rank, working_weight
from ..fitting.choices import asked_ranks, choose_options, make_plan, rank_patterns
from ..fitting.comparison import Outcome, closest
from ..fitting.digests import Fingerprint, fingerprint
from ..fitting.factoring import Factoring
from ..fitting.fitted import Fitted
from ..fitting.importance import TRIED_ON, importances
from ..fitting.memo import Memo, Recall
from ..fitting.offers import NO_SPARSE, WeightOffers, offered, storable
from ..fitting.reconstruction import Reconstruction, assembled, reconstruct
from ..fitting.steps import Steps
from ..fitting.through_time import amplifications
from ..layers import densify
from ..metrics import count_parameters
from ..network.batches import batches as as_batches
from ..network.batches import device_of
from ..network.normalization import fold, foldable_norms
from ..network.structure import Structure
from ..network.weighting import weighted
from ..network.weights import Selection, Site, check_model, check_patterns, require_sites, select
from ..plan import LayerPlan, Report, doubts
from ..protocols import Allocation, Cost, Decomposition, Storage
from .checks import (
    check_device,
    check_jobs,
    check_rank,
    computing,
    rank_allocation,
    require_support,
    seeded,
    uses_data,
)
from .settings import FactorizingSettings


@dataclass(frozen=True)
class Method:
    """The settings of a fit, resolved."""

    decompositions: Sequence[Decomposition]
    storages: Sequence[Storage]
    allocation: Allocation
    cost: Cost


class FactorizingCompressor(FactorizingSettings):
    """Replaces every layer by a chain of thinner ones: all but which decompositions."""

    rank: Any
    _own: Memo | None = None  # results that warm_start keeps

    @abstractmethod
    def _candidates(self) -> Iterable[Any]:
        """Decompositions, or names of them, that compete for the layers."""

    def _competing(
        self, decompositions: Sequence[Decomposition], shape: Sequence[int]
    ) -> list[Decomposition]:
        """Those of the candidates that compete for a weight (out, in, *kernel)."""
        return [d for d in decompositions if d.unsupported(shape) is None]

    def inverse_transform(self, model: nn.Module) -> nn.Module:
        """Give a copy of a compressed `model` with ordinary dense layers; same function."""
        return densify(check_model(type(self).__name__, model))

    @computing
    def _fit(self, model: nn.Module, data: object) -> nn.Module | None:
        # The metric of the weights does not use the data; a budget of FLOPs uses its shapes.
        method = self._checked(model)
        calibrated = uses_data(self, method.cost, data)
        selection = select(model, self.layers, self.exclude)
        require_sites(type(self).__name__, selection)
        seen = {site.name: self._fingerprint(site) for site in selection.sites}
        steps, recall = Steps(device_of(model)), Recall(self._memo())
        n_in, folded = count_parameters(model), dict[str, str]()
        given: Calibration | None = None
        if calibrated or method.cost.needs_inputs:
            given = self._observed(model, data, selection, recall, steps)
        if calibrated and self.fold_norm:
            assert given is not None
            given, folded = _folded(given)
            selection = select(given.model, self.layers, self.exclude)
            given = replace(given, sites=selection.sites)
            seen = {site.name: self._fingerprint(site) for site in selection.sites}
        if given is not None and calibrated and (self.sensitivity or self.metric == "fisher"):
            with steps("differentiate"):
                given = given.with_gradients(self.metric == "fisher", self.verbose)
        with steps("factorize"):
            found = self._findings(selection, method, given if calibrated else None, recall)
            fed_back: Mapping[str, float] = {}
            if given is not None and calibrated:
                fed_back = amplifications(given, found, self.device, self.verbose)
            calls = None if given is None else given.structure.calls
            offers = [
                offered(site, found[site.name], method.storages, method.cost, calls)
                for site in selection.sites
            ]
        require_support(type(self).__name__, selection.sites, offers, method.decompositions)
        whole, cost = (model if given is None else given.model), method.cost
        n_whole = cost.of_model(whole, (), {}) if given is None else given.cost_of(cost, whole)

        def fitted(importance: Mapping[str, float], on: Calibration | None) -> Fitted:
            layers = [
                o.layer(importance.get(o.name, 1.0) * fed_back.get(o.name, 1.0)) for o in offers
            ]
            choices, reasons = choose_options(
                layers, selection.sites, self.rank, method.allocation, n_whole, method.cost
            )
            factoring = Factoring(offers, choices, seen, self.device)
            done = self._reconstructed(selection, factoring, found, on)
            return Fitted(
                make_plan(selection, offers, choices, reasons, method.decompositions),
                done.replacements,
                done.offsets,
                folded=folded,
                patterns=(self.layers, self.exclude),
                calibrated=on is not None,
            )

        if given is None or not calibrated:
            with steps("allocate"):
                outcome = Outcome(fitted({}, None))
        else:
            outcome = self._closest(fitted, found, given, steps)
        self.n_parameters_in_ = n_in
        norms = [_folded_row(model, *pair) for pair in folded.items()]
        self._learn(outcome, offers, norms, count_parameters(whole), (method.cost, n_whole), steps)
        return outcome.network

    def _checked(self, model: nn.Module) -> Method:
        """Refuse whatever can be refused before any work; resolve what settings name."""
        self._validate_params()
        owner = type(self).__name__
        check_rank(owner, self.rank)
        check_device(owner, self.device)
        check_jobs(owner, self.n_jobs)
        allocation = rank_allocation(owner, self.allocation)
        cost = clone(registry.make("costs", self.cost))
        check_model(owner, model)
        check_patterns("layers", self.layers, model)
        check_patterns("exclude", self.exclude, model)
        check_patterns("rank", rank_patterns(self.rank), model)
        storages = ["pivot", "plain"] if self.pivot else ["plain"]
        return Method(
            self._decompositions(), [registry.make("storages", s) for s in storages],
            allocation, cost,
        )  # fmt: skip

    def _decompositions(self) -> list[Decomposition]:
        """Instances, seeded where they draw random numbers, of schemes of different names."""
        random_state = check_random_state(self.random_state)
        resolved: dict[str, Decomposition] = {}
        for candidate in self._candidates():
            decomposition: Any = clone(registry.make("decompositions", candidate))
            seeded(decomposition, random_state)
            if decomposition.scheme in resolved:
                raise InvalidParameterError(
                    f"The 'decomposition' parameter of {type(self).__name__} must be "
                    f"decompositions with schemes of different names. Got "
                    f"{decomposition.scheme!r} twice instead."
                )
            if self.pivot:  # which saves numbers where other factors do not
                decomposition = with_every_rank(decomposition)
            resolved[decomposition.scheme] = decomposition
        return list(resolved.values())

    def _observed(
        self, model: nn.Module, data: object, selection: Selection, recall: Recall, steps: Steps
    ) -> Calibration:
        batches = as_batches(type(self).__name__, data, model)
        with steps("observe"):
            return Calibration.observed(
                model,
                selection.sites,
                weighted(batches, self.class_weight),
                recall,
                memory=self.calibration_memory,
                max_positions=self.max_positions,
                random_state=self.random_state,
            )

    def _findings(
        self, selection: Selection, method: Method, given: Calibration | None, recall: Recall
    ) -> dict[str, Findings]:
        """Do the expensive step for every weight, in the metric that there are inputs for."""
        sites = selection.sites
        able = {s.name: self._competing(method.decompositions, s.slot.shape[1:]) for s in sites}
        competing = {site.name: storable(able[site.name], site) for site in sites}

        def compete(site: Site) -> list[Decomposition]:
            return competing[site.name]

        if given is None:
            found = of_weights(sites, compete, recall, self.device, self.n_jobs, self.verbose)
        else:
            asked = asked_ranks(self.rank)
            found = of_inputs(sites, compete, given, self.device, asked, self.verbose)
        refused = [name for name in found if able[name] and not competing[name]]
        return found | {name: replace(found[name], reason=NO_SPARSE) for name in refused}

    def _reconstructed(
        self,
        selection: Selection,
        factoring: Factoring,
        found: Mapping[str, Findings],
        given: Calibration | None,
    ) -> Reconstruction:
        """Make the factors of each weight by itself, or fit one weight after another to data."""
        sites, make = selection.sites, factoring.of_weight
        if given is None or self.reconstruction == "independent":
            structure = Structure() if given is None else given.structure
            return assembled(sites, make, found, structure, self.device)
        # A weight that is computed from other tensors cannot be set.
        taking_part = [
            site
            for site in sites
            if site.name in factoring or (self.refit_dense and site.alone and not site.computed)
        ]
        return reconstruct(
            given, taking_part, make, factoring.of_inputs, device=self.device, verbose=self.verbose
        )

    def _closest(
        self,
        fitted: Callable[[Mapping[str, float], Calibration], Fitted],
        found: Mapping[str, Findings],
        given: Calibration,
        steps: Steps,
    ) -> Outcome:
        """Give what changes the network's outputs least, of all sensitivities that are tried."""
        name = "allocate" if self.reconstruction == "independent" else "reconstruct"
        needed = self.sensitivity == "auto"

        def tried(powers: Iterable[Mapping[str, float]], on: Calibration) -> Iterator[Fitted]:
            for importance in powers:
                with steps(name):
                    yield fitted(importance, on)

        powers: list[Mapping[str, float]] = list(importances(found, self.sensitivity))
        part = given.part(TRIED_ON) if len(powers) > 1 else given
        if part is not given:
            fits = list(tried(powers, part))
            best = closest(fits, part, steps, needed=needed, measure=False)
            powers = [powers[fits.index(best.fitted)]]
        return closest(
            tried(powers, given), given, steps,
            recalibrate=self.recalibrate_norm, needed=needed, measure=self.measure,
        )  # fmt: skip

    def _learn(
        self,
        outcome: Outcome,
        offers: Sequence[WeightOffers],
        norms: Sequence[LayerPlan],
        n_whole: int,
        budget: tuple[Cost, float],
        steps: Steps,
    ) -> None:
        """Set what was learnt."""
        self.fitted_, self.plan_ = outcome.fitted, outcome.fitted.plan
        self.ranks_ = {row.name: row.rank for row in self.plan_ if row.rank is not None}
        self.spectra_ = {
            offer.name: values
            for offer in offers
            if (values := offer.spectrum(self.plan_[offer.name].scheme)) is not None
        }
        self.n_parameters_out_ = n_whole - sum(row.before - row.after for row in self.plan_)
        for name in ("n_flops_in_", "n_flops_out_"):  # of an earlier fit
            self.__dict__.pop(name, None)
        flops = None
        cost, n = budget
        if cost.unit == "FLOPs":
            spared = sum(offer.saved(self.plan_[offer.name]) for offer in offers)
            flops = self.n_flops_in_, self.n_flops_out_ = int(n), int(n - spared)
        self.report_ = Report(
            self.plan_,
            self.n_parameters_in_,
            self.n_parameters_out_,
            flops,
            steps=tuple(steps.done),
            divergence=outcome.divergence,
            measured=outcome.errors,
            folded=tuple(norms),
        )
        doubtful = self.report_.doubtful
        if not outcome.fitted.calibrated and 2 * len(doubtful) > len(self.ranks_):
            warnings.warn(doubts(doubtful, self.plan_), DamageWarning, stacklevel=6)

    def _fingerprint(self, site: Site) -> Fingerprint:
        return fingerprint(site.name, working_weight(site, self.device))

    def _memo(self) -> Memo | None:
        """What this fit shares: with others, with earlier ones of its own, or nothing."""
        if self._shared is not None:
            return self._shared  # type: ignore[no-any-return]
        self._own = (self._own or Memo()) if self.warm_start else None
        return self._own

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_own"}


def _folded(given: Calibration) -> tuple[Calibration, dict[str, str]]:
    """Multiply normalisations into the layers before them, in a copy of the model."""
    folded = foldable_norms(given.model, given.structure.norms)
    structure = given.structure.without_norms(folded)
    return replace(given, model=fold(given.model, folded), structure=structure), folded


def _folded_row(model: nn.Module, layer: str, name: str) -> LayerPlan:
    """What the report says of a normalisation that is no layer any more."""
    norm = model.get_submodule(name)
    size = sum(p.numel() for p in norm.parameters())
    shape = tuple(next(iter(norm.buffers())).shape)
    return LayerPlan(name, type(norm).__name__, shape, size, 0, reason=f"folded into {layer}")
