"""The expensive step: every way of cutting up every weight, with its errors at every rank."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from joblib import Parallel, delayed
from sklearn.base import clone
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import MetaWeightError
from ..network.weights import Site
from ..protocols import (
    Curve,
    Decomposition,
    Factorization,
    Factors,
    Metric,
    Rank,
    WeightDecomposition,
)
from ..statistics.gradients import kfac_energy
from ..statistics.moments import Statistics
from .calibration import Calibration, noise, on
from .curves import merge_curves

NOT_REACHED = "no batch of the data reaches it"
WEIGHTS_ONLY = "works in the metric of the weights only: use metric='weights'"

Compete = Callable[[Site], Sequence[Decomposition]]
Means = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Candidate:
    """One way of cutting up one weight: a factorisation per group, and their sum."""

    decomposition: Decomposition
    parts: tuple[Factorization, ...]
    curve: Curve

    @classmethod
    def of(cls, decomposition: Decomposition, parts: Sequence[Factorization]) -> Candidate:
        """Put the groups together: every one has the same rank."""
        return cls(decomposition, tuple(parts), merge_curves([part.curve for part in parts]))

    def factors(self, weight: Tensor, rank: Rank) -> list[Factors]:
        """Give the factors of each group of the weight (groups, out, in, *kernel)."""
        return [part.factors(group, rank) for part, group in zip(self.parts, weight, strict=True)]


@dataclass(frozen=True)
class Findings:
    """What the expensive step found out about a weight.

    means : (groups, n), mean inputs of the factors on the data, and (groups, out), the mean
        outputs that they are to give; where something makes up for the difference
    energy : K-FAC energy, how much the network's outputs react to all of the weight; None where
        it is not known
    reason : why there are no candidates, where it is not for the weight's shape
    """

    candidates: tuple[Candidate, ...] = ()
    means: Means | None = None
    energy: float | None = None
    reason: str | None = None


def of_weights(
    sites: Sequence[Site],
    compete: Compete,
    recall: Any,
    device: Any,
    n_jobs: int | None,
    verbose: bool | int,
) -> dict[str, Findings]:
    """Factorise every weight in all ways that compete for it, for itself."""
    pairs = [(site, decomposition) for site in sites for decomposition in compete(site)]
    found: dict[str, dict[int, Candidate]] = {site.name: {} for site in sites}
    aside = {"n_jobs": n_jobs, "verbose": verbose}
    for (site, decomposition), candidate in recall.each(_factorized, pairs, device, aside=aside):
        found[site.name][id(decomposition)] = candidate
    return {
        site.name: Findings(tuple(found[site.name][id(d)] for d in compete(site))) for site in sites
    }


def _factorized(
    pairs: Sequence[tuple[Site, Decomposition]],
    device: Any,
    *,
    n_jobs: int | None,
    verbose: bool | int,
) -> Iterable[tuple[tuple[Site, Decomposition], Candidate]]:
    def one(site: Site, decomposition: Decomposition) -> Candidate:
        weight = working_weight(site, device)
        return Candidate.of(decomposition, [decomposition.factorize(group) for group in weight])

    bar = tqdm(pairs, desc="factorize", unit="weight", disable=not verbose)
    # A hint, not an order: joblib.parallel_config of the user decides.
    made = Parallel(n_jobs=n_jobs, prefer="threads")(delayed(one)(*pair) for pair in bar)
    return zip(pairs, made, strict=True)


@dataclass(frozen=True)
class _Job:
    """A weight to be cut up for its inputs.

    roots : of each group, see `Calibration.roots`; centred : whether something makes up for the
    mean; gradients : second moment at its outputs, where its energy is asked for
    asked : ranks that have to be on offer of decompositions that know nothing of inputs
    """

    site: Site
    decompositions: tuple[Decomposition, ...]
    roots: tuple[Tensor | None, ...]
    centred: bool
    gradients: Tensor | None
    asked: tuple[int, ...]


def of_inputs(
    sites: Sequence[Site],
    compete: Compete,
    calibration: Calibration,
    device: Any,
    asked: Collection[int],
    verbose: bool | int,
) -> dict[str, Findings]:
    """Factorise every weight that the data reaches, for the inputs that it meets there.

    asked : ranks that have to be on offer
    """
    jobs = []
    for site in sites:
        competing = tuple(compete(site))
        jobs.append(
            _Job(
                site,
                competing,
                calibration.roots(site),
                calibration.structure.takes_mean(site) is not None,
                calibration.gradients.get(site.name),
                _asked(competing, asked),
            )
        )
    given = calibration
    # The same arguments as its statistics depend on; what else is seen of the data is in the jobs.
    found = given.recall.each(
        _regressed, jobs, given.model, given.batches, *given.draws, device,
        aside={"calibration": given, "verbose": verbose},
    )  # fmt: skip
    by_name = {job.site.name: findings for job, findings in found}
    return {site.name: by_name.get(site.name, Findings(reason=NOT_REACHED)) for site in sites}


def _regressed(
    jobs: Sequence[_Job], *key: Any, calibration: Calibration, verbose: bool | int
) -> Iterator[tuple[_Job, Findings]]:
    *_, device = key
    by_name = {job.site.name: job for job in jobs}
    recall = calibration.recall
    for site, statistics in calibration.statistics([job.site for job in jobs], verbose):
        job = by_name[site.name]
        met = WeightOnData(working_weight(site, device), statistics, job.roots, job.centred)
        candidates = [
            recall(_candidate, met, d, _asked([d], job.asked)) for d in job.decompositions
        ]
        kept = tuple(filter(None, candidates))
        energy = None if job.gradients is None else recall(_energy, met, job.gradients)
        reason = WEIGHTS_ONLY if job.decompositions and not kept else None
        yield job, Findings(kept, met.means(), energy, reason)


def _asked(competing: Sequence[Decomposition], asked: Collection[int]) -> tuple[int, ...]:
    """Ranks that have to be on offer; others than these decompositions offer every rank."""
    some = any(isinstance(d, WeightDecomposition) for d in competing)
    return tuple(sorted(asked)) if some else ()


@dataclass(frozen=True)
class WeightOnData:
    """A weight (groups, out, in, *kernel), and what it meets on the data; see `_Job`."""

    weight: Tensor
    statistics: Statistics
    roots: tuple[Tensor | None, ...]
    centred: bool

    @cached_property
    def metrics(self) -> list[Metric]:
        """One for each group; made once for all decompositions, as they take large products."""
        moments = self.statistics.moments
        if moments is None:
            assert self.statistics.lookups is not None
            # One look-up more each: rows that the data does not have are kept as well as the
            # others allow.
            often = self.statistics.lookups.to(self.weight) + 1
            return [Metric.of_rows(group, often) for group in self.weight]
        device, metrics = self.weight.device, []
        of_groups = moments.of_inputs(self.centred), self.roots, self.noise
        for group, inputs, root, least in zip(self.weight, *of_groups, strict=True):
            metric = Metric.of_inputs(group, inputs.to(device), on(device, root))
            metrics.append(metric.with_ridge(group, least=least))
        return metrics

    @property
    def noise(self) -> list[float]:
        """What rounding leaves of inputs that never change, of each group."""
        moments = self.statistics.moments
        assert moments is not None
        return [noise(*pair) for pair in zip(moments.covariances, moments.mean, strict=True)]

    def means(self) -> Means | None:
        """See `Findings`."""
        moments = self.statistics.moments
        if moments is None or not self.centred:
            return None
        inputs = moments.mean.to(self.weight.device)
        return inputs, (self.weight.flatten(2).to(inputs) @ inputs[..., None])[..., 0]


def _candidate(
    met: WeightOnData, decomposition: Decomposition, asked: Collection[int]
) -> Candidate | None:
    """Cut a weight up in one way; None where that is for the metric of the weights only."""
    pairs = zip(met.weight, met.metrics, strict=True)
    parts = [decomposition.factorize(group, metric, asked) for group, metric in pairs]
    found = Candidate.of(decomposition, parts)
    return found if len(found.curve.costs) else None


def _energy(met: WeightOnData, gradients: Tensor) -> float | None:
    moments = met.statistics.moments
    if moments is None:
        return None
    # No weight counts for nothing where its inputs never change.
    noisy = [
        m.plus(least) for m, least in zip(moments.of_inputs(met.centred), met.noise, strict=True)
    ]
    return kfac_energy(met.weight, noisy, gradients.to(met.weight.device))


def working_weight(site: Site, device: Any) -> Tensor:
    """Weight (groups, out, in, *kernel) as decompositions take it."""
    weight = site.slot.read().detach()
    if weight.is_meta:
        raise MetaWeightError(site.name)
    return weight.to(device=device, dtype=torch.promote_types(weight.dtype, torch.float32))


def with_every_rank(decomposition: Decomposition) -> Decomposition:
    """Tell a decomposition to keep ranks that save numbers in some storages only."""
    if "every_rank" in decomposition.get_params(deep=False):
        return clone(decomposition).set_params(every_rank=True)  # type: ignore[no-any-return]
    return decomposition
