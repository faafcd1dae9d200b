"""One fit of a pruner: scores, a budget, and values for what stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...fitting.calibration import Calibration
from ...fitting.candidates import NOT_REACHED, working_weight
from ...fitting.choices import plan_of
from ...fitting.digests import Fingerprint, fingerprint
from ...fitting.reconstruction import Reconstruction, reconstruct
from ...masks import masked, n_nonzero
from ...metrics import count_bytes, count_nonzeros
from ...network.weights import Selection, Site
from ...plan import Plan, Zeros
from ...protocols import Criterion, DataCriterion, SparsityAllocation
from ...ranking import pieces
from ...threads import results_side_by_side
from .masking import Distortion, chosen, chosen_by_pattern, distortion
from .measuring import measured_distortions
from .patterns import unsuited
from .pruned import PrunedWeight
from .refitting import RIDGE, Refit
from .scoring import gathered, scored


@dataclass(frozen=True)
class Method:
    """How to prune; see :class:`Pruner`."""

    criterion: Criterion | DataCriterion
    sparsity: float
    allocation: SparsityAllocation
    pattern: tuple[int, int] | None
    min_kept: Any
    refit: bool
    refit_rounds: int = 1

    @property
    def needs(self) -> tuple[str, ...]:
        """What data has to say, before anything is chosen."""
        wanted = self.criterion.needs if isinstance(self.criterion, DataCriterion) else ()
        return (*wanted, *(self.allocation.needs if self.pattern is None else ()))

    @property
    def updates(self) -> bool:
        """Whether the criterion itself has other values for what stays."""
        written = type(self.criterion)
        return issubclass(written, DataCriterion) and written.updated is not DataCriterion.updated


@dataclass(frozen=True)
class PruningFit:
    """Goes from the weights of a model to what is left of them.

    reasons : why weights are not pruned, by name
    seen : fingerprints of those that are
    """

    owner: str
    selection: Selection
    method: Method
    calibration: Calibration | None
    device: Any
    verbose: bool | int = False
    reasons: dict[str, str] = field(default_factory=dict)
    seen: dict[str, Fingerprint] = field(default_factory=dict)

    @property
    def sites(self) -> list[Site]:
        """Those that are pruned, as far as it is known."""
        return [site for site in self.selection.sites if site.name not in self.reasons]

    def scores(self) -> dict[str, Tensor]:
        """Importances by the name of the site; notes the weights that have none."""
        method = self.method
        if method.pattern is not None:
            for site in self.selection.sites:
                reason = unsuited(site.slot.shape, method.pattern)
                if reason is not None:
                    self.reasons[site.name] = reason
        for site in self.sites:  # before any forward: what is not finite has a name here
            self.seen[site.name] = fingerprint(site.name, working_weight(site, self.device))
        found = scored(
            method.criterion,
            self.sites,
            self.calibration,
            self.device,
            self.verbose,
        )
        for site in self.sites:
            if site.name not in found:
                self.reasons[site.name] = NOT_REACHED
        return found

    def masks(self, scores: dict[str, Tensor]) -> list[PrunedWeight]:
        """Decide which values stay; uses the scores up."""
        method = self.method
        if method.pattern is not None:
            return chosen_by_pattern(self.sites, scores, method.pattern, self.seen)
        distortions: Mapping[str, Distortion] = {}
        if "distortion" in method.allocation.needs:
            distortions = self._distortions(scores)
        elif "measured_distortion" in method.allocation.needs:
            assert self.calibration is not None
            distortions = measured_distortions(
                self.sites, dict(scores), self.calibration, self.device
            )
        return chosen(
            self.owner,
            self.sites,
            scores,
            method.sparsity,
            method.min_kept,
            method.allocation,
            distortions,
            self.seen,
            self.device,
        )

    def _distortions(self, scores: Mapping[str, Tensor]) -> dict[str, Distortion]:
        given = self.calibration
        assert given is not None
        gradients = given.with_gradients(False, self.verbose).gradients
        sizes = [float(_diagonal(g).mean()) for g in gradients.values()]
        typical = sorted(sizes)[len(sizes) // 2] if sizes else 1.0
        moments = {
            site.name: found.moments for site, found in given.statistics(self.sites, self.verbose)
        }
        result = {}
        for site in self.sites:
            seen = moments.get(site.name)
            if seen is None:  # not reached, or looked up: nothing says what it would cost
                self.reasons[site.name] = NOT_REACHED
                continue
            weight = working_weight(site, self.device)
            of_outputs = gradients.get(site.name)
            if of_outputs is None:  # outputs that never leave their layer
                of_outputs = torch.full(weight.shape[:2], typical, dtype=torch.float64)
            result[site.name] = distortion(scores[site.name], weight, seen, of_outputs)
        return result

    def fitted(self, pruned: Sequence[PrunedWeight]) -> Reconstruction:
        """Fit what stays, where that is asked for."""
        method, given = self.method, self.calibration
        known = {one.name: one for one in pruned}
        if method.refit:
            assert given is not None
            refit = Refit(known, method.refit_rounds, method.pattern)
            return reconstruct(
                given, self.sites, refit.of_weight, refit.of_inputs,
                device=self.device, ridge=RIDGE, verbose=self.verbose,
            )  # fmt: skip
        if method.updates:
            self._update(known)
        elif given is None:
            assert isinstance(method.criterion, Criterion)
            again: dict[str, Any] = {"criterion": method.criterion, "pattern": method.pattern}
            known = {name: replace(one, **again) for name, one in known.items()}
        return Reconstruction(dict(known))

    def _update(self, known: dict[str, PrunedWeight]) -> None:
        criterion, given = self.method.criterion, self.calibration
        assert isinstance(criterion, DataCriterion)
        assert given is not None
        for site, evidence in gathered(
            criterion.needs, self.sites, given, self.device, self.verbose
        ):
            weight = working_weight(site, self.device)
            kept = known[site.name].kept(weight.device)
            # What was zero before stays so, also where more values may stay than are not.
            parts = zip(weight, evidence, kept & (weight != 0), strict=True)
            values = torch.stack([criterion.updated(*part) for part in parts])[kept]
            known[site.name] = replace(known[site.name], values=values)

    def plan(self, pruned: Mapping[str, Any]) -> Plan:
        """Say of each weight how many of its values are zero."""
        scheme = type(self.method.criterion).__name__.lower()
        if self.method.pattern is not None:
            scheme += " {}:{}".format(*self.method.pattern)
        sites = self.selection.sites
        rows = results_side_by_side(
            lambda site: self._row(site, scheme, pruned.get(site.name)),
            sites,
            size=lambda site: site.slot.size,
        )
        return plan_of(
            self.selection, {site.name: row for site, row in zip(sites, rows, strict=True)}
        )

    def _row(self, site: Site, scheme: str, known: PrunedWeight | None) -> dict[str, Any]:
        if known is None:
            return {"reason": self.reasons[site.name]}
        weight = working_weight(site, self.device)
        n_before, n_lost, error = _loss(weight, known.kept(weight.device))
        n_after = n_before - n_lost if known.values is None else n_nonzero(known.values)
        return {
            "after": weight.numel(),
            "scheme": scheme,
            "nonzeros": (n_before, n_after),
            "error": error,
        }


def zeros(model: nn.Module, plan: Plan) -> Zeros:
    """Count what pruning does to a whole model."""
    rows = [(row, row.nonzeros) for row in plan if row.nonzeros is not None]
    weights = sum(row.after for row, _ in rows)
    before, after = (sum(pair[i] for _, pair in rows) for i in (0, 1))
    n_bytes, nonzeros = count_bytes(model), count_nonzeros(model)
    # Of a model in several precisions: as if all were in that of its first parameter.
    itemsize = next((p.itemsize for p in model.parameters()), 0)
    spared = sum(row.before - row.after for row, _ in rows)
    packed = sum(-(-row.after // 8) + pair[1] * itemsize for row, pair in rows)
    return Zeros(
        weights,
        (weights - before, weights - after),
        (nonzeros, nonzeros - before + after),
        (n_bytes, n_bytes - spared * itemsize),
        n_bytes - sum(row.before for row, _ in rows) * itemsize + packed,
    )


def _loss(weight: Tensor, kept: Tensor) -> tuple[int, int, float]:
    """Count values other than zero, and those of them that go; and the relative norm of these.

    kept : bool, of the weight's shape
    """
    n_before, n_lost, energy, lost_energy = 0, 0, 0.0, 0.0
    for w, k in zip(pieces(weight.reshape(-1)), pieces(kept.reshape(-1)), strict=True):
        lost = masked(w, ~k)
        n_before += n_nonzero(w)
        n_lost += n_nonzero(lost)
        energy += float(w @ w)
        lost_energy += float(lost @ lost)
    return n_before, n_lost, (lost_energy / energy) ** 0.5 if energy > 0 else 0.0


def _diagonal(moment: Tensor) -> Tensor:
    return moment if moment.dim() == 2 else moment.diagonal(dim1=1, dim2=2)
