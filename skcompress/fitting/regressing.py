"""Factorisations in the metric of the activations: the expensive step of `fit` with data."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from functools import cached_property, partial
from typing import Any

from torch import Tensor, nn

from ..decompositions.pivoted import Pivoted
from ..network.weights import Site
from ..protocols import Decomposition, Metric, WeightDecomposition
from ..statistics.gradients import kfac_energy
from ..statistics.moments import Moments, Statistics
from .calibrated import Calibration, noise, on
from .digests import fingerprint, settings_digest
from .factorizing import Candidate, Compete, FactorizedSite, working_weight

NOT_REACHED = "no batch of the data reaches it"
WEIGHTS_ONLY = "works in the metric of the weights only: use metric='weights'"


class _Needed(Exception):  # noqa: N818 - no error: the data has to be looked at
    """Statistics are needed that are not there."""


def regress_sites(
    model: nn.Module,
    sites: Sequence[Site],
    calibration: Calibration,
    compete: Compete,
    device: object,
    verbose: bool | int,
    *,
    asked: Collection[int] = (),
) -> list[FactorizedSite]:
    """Factorise every weight that the data reaches, for the inputs that it meets there.

    compete : gives the decompositions for a weight; see `WeightDecomposition` for those that know
        nothing of inputs
    asked : ranks that have to be on offer

    What `calibration` knows of the same network and data is taken over.
    """
    shared = calibration.known.shared
    tasks = [_Task(site, compete(site), calibration, device, asked) for site in sites]
    found: dict[str, FactorizedSite] = {}

    def look() -> list[_Task]:
        """Do what needs no data; give the rest."""
        for task in tasks:
            if task.site.name not in found:
                try:
                    found[task.site.name] = task.result(shared.find(task.key("statistics")))
                except _Needed:
                    continue
        return [task for task in tasks if task.site.name not in found]

    if look():
        with shared.alone(("statistics", calibration.known.of)):
            waiting = {task.site.name: task for task in look()}  # others may have been faster
            open_ = [task.site for task in waiting.values()]
            for name, statistics in calibration.stream(model, open_, verbose):
                task = waiting.pop(name)
                shared.put(task.key("statistics"), statistics, spare=True)
                found[name] = task.result(statistics)
            for name, task in waiting.items():
                shared.put(task.key("statistics"), Statistics())
                found[name] = task.result(Statistics())
    return [found[site.name] for site in sites]


class _Task:
    """A weight to be cut up in several ways, for its inputs."""

    def __init__(
        self,
        site: Site,
        decompositions: Sequence[Decomposition],
        calibration: Calibration,
        device: Any,
        asked: Collection[int],
    ):
        self.site, self._decompositions = site, decompositions
        self._calibration, self._device = calibration, device
        self._asked = asked
        # Which also refuses NaN before any forward.
        self._fingerprint = fingerprint(site.name, working_weight(site, device))

    def key(self, what: str, *more: Hashable) -> Hashable | None:
        """Name what is known of this weight on the data; `more` is what else it depends on."""
        given = self._calibration
        return given.known.key(what, self.site.name, given.positions, *more)

    def result(self, statistics: Statistics | None) -> FactorizedSite:
        """Put together what is known already, and find out the rest.

        statistics : None for not yet; `_Needed` is raised where it cannot do without
        """
        site, given, get = self.site, self._calibration, self._calibration.known.shared.get
        weight = working_weight(site, self._device)
        offset_to, where = given.offset_to(site), str(self._device)
        roots = given.output_roots(site)
        met = _Met(weight, statistics, roots, centred=offset_to is not None)
        reached, means = get(self.key("means", where), met.means)
        # Whether all of a weight's gradients are known is a matter of memory.
        gradients, energy = given.gradients.get(site.name), None
        candidates: list[Candidate | None] = []
        if gradients is not None and reached:
            energy = get(self.key("energy", given.memory, where), lambda: met.energy(gradients))
        for d in self._decompositions if reached else ():
            # Others offer every rank, whatever is asked for.
            of = d.decomposition if isinstance(d, Pivoted) else d
            asked = tuple(sorted(self._asked)) if isinstance(of, WeightDecomposition) else ()
            weighed = given.memory if given.fisher else "alike"
            key = self.key("regression", settings_digest(d), asked, weighed, where)
            candidates.append(get(key, partial(met.candidate, d, asked)))
        found = tuple(filter(None, candidates))
        return FactorizedSite(
            site.name,
            tuple(weight.shape[1:]),
            site.slot.size,
            self._fingerprint,
            found,
            means=means,
            offset_to=offset_to if means is not None else None,
            sensitivity=energy,
            reason=self._why_none(reached) if not found else None,
        )

    def _why_none(self, reached: bool) -> str | None:
        """Say why nothing was found; None where it is for the weight's shape."""
        if not reached:
            return NOT_REACHED
        return WEIGHTS_ONLY if self._decompositions else None


class _Met:
    """A weight (groups, out, in, *kernel) and what it met on the data.

    roots : of each group, see `Calibration.output_roots`; centred : whether something makes up
    for the mean
    """

    def __init__(
        self,
        weight: Tensor,
        statistics: Statistics | None,
        roots: Sequence[Tensor | None],
        *,
        centred: bool,
    ):
        self._weight, self._known, self._roots = weight, statistics, roots
        self._centred = centred

    @property
    def _statistics(self) -> Statistics:
        if self._known is None:
            raise _Needed
        return self._known

    @property
    def _moments(self) -> Moments | None:
        return self._statistics.moments

    @cached_property
    def _metrics(self) -> list[Metric]:
        # Once for all decompositions: products of the weight with its largest companion.
        moments = self._moments
        if moments is None:
            assert self._statistics.lookups is not None
            # One look-up more each: rows that the data does not have are kept as well as the
            # others allow.
            often = self._statistics.lookups.to(self._weight) + 1
            return [Metric.of_rows(group, often) for group in self._weight]
        device = self._weight.device
        metrics = []
        of_groups = moments.of_inputs(self._centred), self._roots, self._noise
        for group, inputs, root, least in zip(self._weight, *of_groups, strict=True):
            metric = Metric.of_inputs(group, inputs.to(device), on(device, root))
            metrics.append(metric.with_ridge(group, least=least))
        return metrics

    @property
    def _noise(self) -> list[float]:
        assert self._moments is not None
        pairs = zip(self._moments.covariances, self._moments.mean, strict=True)
        return [noise(covariance, mean) for covariance, mean in pairs]

    def means(self) -> tuple[bool, tuple[Tensor, Tensor] | None]:
        """Whether any batch reaches it, and `FactorizedSite.means`."""
        moments = self._moments
        if moments is None or not self._centred:
            return moments is not None or self._statistics.lookups is not None, None
        inputs = moments.mean.to(self._weight.device)
        return True, (inputs, (self._weight.flatten(2).to(inputs) @ inputs[..., None])[..., 0])

    def energy(self, gradients: Tensor) -> float | None:
        """K-FAC energy, for the second moment of its gradients."""
        if self._moments is None:
            return None
        moments = self._moments.of_inputs(self._centred)
        # No weight counts for nothing where its inputs never change.
        noisy = [m.plus(least) for m, least in zip(moments, self._noise, strict=True)]
        return kfac_energy(self._weight, noisy, gradients.to(self._weight.device))

    def candidate(self, decomposition: Decomposition, asked: Collection[int]) -> Candidate | None:
        """Cut it up in one way; None where that is for the metric of the weights only."""
        parts = [
            decomposition.factorize(group, metric, asked)
            for group, metric in zip(self._weight, self._metrics, strict=True)
        ]
        candidate = Candidate(parts)  # whose curve is made now, so that its size is known
        return candidate if len(candidate.curve.costs) else None
