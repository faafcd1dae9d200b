"""From the weights of a model to factorisations, and from those to parameters."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm.auto import tqdm

from ..errors import CalibratedWeightError, MetaWeightError
from ..layers import kind_of
from ..layers.chain import empty_factors, merge_groups, merge_stages
from ..layers.writing import write_weights
from ..network.weights import Site
from ..plan import LayerPlan
from ..protocols import Choice, Curve, Decomposition, Factorization, Factors, Layer, Spectrum
from ..protocols.product import multiply_out
from .digests import Fingerprint, fingerprint, settings_digest
from .sharing import Shared

Compete = Callable[[Site], list[Decomposition]]


@dataclass(frozen=True)
class Candidate:
    """One way of cutting up one weight: a factorisation per group, and their sum."""

    parts: list[Factorization]

    @cached_property
    def curve(self) -> Curve:
        """Curve of the whole layer: every group has the same rank."""
        return merge_curves([part.curve for part in self.parts])


@dataclass(frozen=True)
class FactorizedSite:
    """A weight with everything that the expensive step found out about it.

    shape : (out, in, *kernel) of each of its groups
    dense : stored numbers
    means : (groups, n), mean inputs of the factors on the data, and (groups, out), the mean
        outputs that they are to give; where something makes up for the difference
    offset_to : name of the module that does: the layer itself, by its bias, or the batch
        normalisation after it, by its running mean
    sensitivity : K-FAC energy, how much the network's outputs react to all of the weight; None
        where it is not known
    refitted : (groups, out, in, *kernel), what replaces the weight where it stays dense
    reason : why there are no candidates, where it is not for the weight's shape
    """

    name: str
    shape: tuple[int, ...]
    dense: int
    fingerprint: Fingerprint
    candidates: tuple[Candidate, ...]
    means: tuple[Tensor, Tensor] | None = None
    offset_to: str | None = None
    sensitivity: float | None = None
    refitted: Tensor | None = None
    reason: str | None = None

    @property
    def layer(self) -> Layer:
        """What an allocation sees."""
        return Layer(self.name, self.dense, tuple(c.curve for c in self.candidates))

    def spectrum(self, choice: Choice | None) -> np.ndarray | tuple[np.ndarray, ...] | None:
        """Singular values of the chosen candidate, or of the first; several for a Tucker."""
        if not self.candidates:
            return None
        spectra = self.candidates[0 if choice is None else choice.curve].curve.spectra
        values = tuple(spectrum.values for spectrum in spectra)
        return values[0] if len(values) == 1 else values or None

    def trimmed(self, choice: Choice | None) -> FactorizedSite:
        """Keep what the chosen rank needs, nothing else."""
        if choice is None:
            return replace(self, candidates=())
        chosen = self.candidates[choice.curve]
        rank = chosen.curve.rank_at(choice.option)
        return replace(self, candidates=(Candidate([p.trim(rank) for p in chosen.parts]),))

    def is_of(self, site: Site) -> bool:
        """Whether a weight, wherever it lies, has the values that this is about."""
        weight = working_weight(site, self.fingerprint.device)
        return fingerprint(self.name, weight) == self.fingerprint

    def parts(self, scheme: str, fingerprint: Fingerprint) -> list[Factorization] | None:
        """Factorisations for a scheme, if these are of the weight with this fingerprint."""
        if fingerprint != self.fingerprint:
            return None
        return next((c.parts for c in self.candidates if c.parts[0].curve.scheme == scheme), None)


@dataclass
class _Task:
    """A weight to be cut up in several ways.

    jobs : under which key each is known, and the decomposition
    found : what is known already, by the number of the job
    """

    site: Site
    fingerprint: Fingerprint
    jobs: list[tuple[Hashable | None, Decomposition]]
    found: dict[int, Candidate]

    def look(self, shared: Shared) -> None:
        for number, (key, _) in enumerate(self.jobs):
            if number not in self.found and (known := shared.find(key)) is not None:
                self.found[number] = known

    @property
    def missing(self) -> dict[int, Decomposition]:
        return {n: d for n, (_, d) in enumerate(self.jobs) if n not in self.found}

    def add(self, candidates: Iterable[Candidate], shared: Shared) -> None:
        for number, candidate in zip(self.missing, candidates, strict=True):
            self.found[number] = candidate
            shared.put(self.jobs[number][0], candidate)

    def result(self) -> FactorizedSite:
        slot, candidates = self.site.slot, (self.found[n] for n in range(len(self.jobs)))
        shape = tuple(slot.shape[1:])
        return FactorizedSite(self.site.name, shape, slot.size, self.fingerprint, tuple(candidates))


def factorize_sites(
    sites: Sequence[Site],
    compete: Compete,
    shared: Shared,
    device: Any,
    n_jobs: int | None,
    verbose: bool | int,
) -> list[FactorizedSite]:
    """Factorise every weight in all ways that compete for it.

    compete : gives the decompositions for a weight
    shared : earlier results; those of equal weights are taken over
    """
    settings: dict[str, str | None] = {}  # describing an estimator is slow: once per scheme
    tasks = []
    for site in sites:
        weight = working_weight(site, device)
        of = (fingerprint(site.name, weight), str(weight.dtype))
        jobs: list[tuple[Hashable | None, Decomposition]] = []
        for d in compete(site):
            if d.scheme not in settings:
                settings[d.scheme] = settings_digest(d)
            words = settings[d.scheme]
            jobs.append((None if words is None else ("factorization", words, *of), d))
        tasks.append(_Task(site, of[0], jobs, {}))
        tasks[-1].look(shared)
    open_ = [task for task in tasks if task.missing]
    if open_:
        with shared.alone(*(task.jobs[n][0] for task in open_ for n in task.missing)):
            for task in open_:  # others may have been faster
                task.look(shared)
            open_ = [task for task in open_ if task.missing]
            bar = tqdm(open_, desc="factorize", unit="layer", disable=not verbose)
            jobs_ = (
                delayed(_factorize)(working_weight(task.site, device), list(task.missing.values()))
                for task in bar
            )
            # A hint, not an order: joblib.parallel_config of the user decides.
            made = Parallel(n_jobs=n_jobs, prefer="threads")(jobs_)
            for task, candidates in zip(open_, made, strict=True):
                task.add(candidates, shared)
    return [task.result() for task in tasks]


def _factorize(weight: Tensor, decompositions: Iterable[Decomposition]) -> list[Candidate]:
    return [Candidate([d.factorize(group) for group in weight]) for d in decompositions]


def working_weight(site: Site, device: Any) -> Tensor:
    """Weight (groups, out, in, *kernel) as decompositions take it."""
    weight = site.slot.read().detach()
    if weight.is_meta:
        raise MetaWeightError(site.name)
    return weight.to(device=device, dtype=torch.promote_types(weight.dtype, torch.float32))


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


def stage_parameters(
    site: Site,
    planned: LayerPlan,
    known: FactorizedSite | None,
    decompositions: Mapping[str, Decomposition],
    device: Any,
    *,
    calibrated: bool = False,
) -> tuple[Factors, Tensor | None]:
    """Parameters of the factors of one weight, as planned, where and what the weight is.

    calibrated : whether only `known` will do, since data took part in it

    Also gives what is missing in the layer's mean outputs, of shape (groups * out,); None
    for nothing. A weight on the meta device gives parameters on the meta device.
    """
    stored = site.slot.read().detach()
    trained = site.slot.requires_grad
    offset = None
    assert planned.scheme is not None
    assert planned.rank is not None
    if stored.is_meta:
        stages = merge_stages(planned.stages, stored.shape[0])
        factors = empty_factors(stages, stored.dtype, "meta")
    else:
        # Factors are made where the weight was factorised, whence the model may have been moved.
        weight = working_weight(site, device if known is None else known.fingerprint.device)
        seen = fingerprint(site.name, weight)
        parts = None if known is None else known.parts(planned.scheme, seen)
        if parts is None:
            if calibrated:
                raise CalibratedWeightError(site.name)
            decomposition = decompositions[planned.scheme]
            parts = [decomposition.factorize(group) for group in weight]
        made = [p.factors(g, planned.rank) for p, g in zip(parts, weight, strict=True)]
        if known is not None and known.means is not None:
            offset = missing_mean([multiply_out(f) for f in made], *known.means)
        factors = merge_groups(made)
    held = factors.holding(
        [nn.Parameter(t.to(stored).contiguous(), trained) for t in factors.stored]
    )
    pivots = tuple(p and replace(p, order=p.order.to(stored.device)) for p in held.pivots)
    sparse = held.sparse
    if sparse is not None:
        sparse = replace(sparse, positions=sparse.positions.to(stored.device))
    return replace(held, pivots=pivots, sparse=sparse), offset


def missing_mean(weights: Iterable[Tensor], inputs: Tensor, outputs: Tensor) -> Tensor:
    """Difference E[y] - W' E[x'] that is to be added, of shape (groups * out,), float64.

    weights : W' (out, in, *kernel) of each group; inputs : (groups, n); outputs : (groups, out)
    """
    given = [w.flatten(1).to(x) @ x for w, x in zip(weights, inputs, strict=True)]
    return (outputs - torch.stack(given)).flatten()


def add_offset(module: nn.Module, offset: Tensor) -> None:
    """Add to what a layer gives, in place: by its bias, or by the mean that is taken off it.

    module : the layer, or the batch normalisation after it
    """
    if isinstance(module, _BatchNorm):
        assert module.running_mean is not None
        module.running_mean.sub_(offset.to(module.running_mean))
    else:
        bias: Tensor = module.bias.data  # type: ignore[assignment, union-attr]
        bias.add_(offset.to(bias))


def set_weight(module: nn.Module, known: FactorizedSite) -> Tensor | None:
    """Write a refitted weight into a layer; gives what is missing in its mean outputs."""
    assert known.refitted is not None
    kind = kind_of(module)
    assert kind is not None
    write_weights(kind, module, {"": known.refitted})
    return None if known.means is None else missing_mean(known.refitted, *known.means)
