"""Factorisations in the metric of the activations: what `fit` does with data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import exp, log
from statistics import fmean
from typing import Any

import torch
from sklearn.utils import check_random_state
from torch import Tensor, nn

from ..calibration import (
    Batches,
    Normalization,
    Statistics,
    foldable,
    following,
    kfac_energy,
    output_moments,
    stream,
)
from ..decompositions.svd import MatrixFactorization
from ..linalg import cholesky
from ..protocols import Decomposition, Factorization, Metric
from ..selection import Site
from .factorizing import Candidate, Compete, FactorizedSite, fingerprint, working_weight
from .last_factor import knows_inputs, regressed

# Of a second moment of gradients, in units of the mean of its diagonal.
DAMPING = 1e-3
# Of the layers' sensitivities; which of them suits a network is found out by comparison.
POWERS = (0.0, 0.25, 0.5, 1.0)
# Of sums of squares in float32, relative to them.
ROUNDING = 1e-6

NOT_REACHED = "no batch of the data reaches it"
WEIGHTS_ONLY = "works in the metric of the weights only: use metric='weights'"


@dataclass(frozen=True)
class Calibration:
    """The data of one fit, what is known of the network from it, and how much of it is used.

    norms : the batch normalisation that alone reads what a layer gives, by the layer's name
    gradients : second moments of the gradients at what each weight gives, (groups, out, out) or
        their diagonals (groups, out), by the site's name; see `calibration.output_moments`
    memory, max_positions, seed : as for `skcompress.calibration.stream`
    """

    batches: Batches
    norms: Mapping[str, Normalization] = field(default_factory=dict)
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    memory: float = 2**31
    max_positions: int | None = None
    seed: int = 0

    @classmethod
    def observed(
        cls,
        batches: Batches,
        model: nn.Module,
        sites: Sequence[Site],
        *,
        memory: float,
        max_positions: int | None,
        random_state: Any,
    ) -> Calibration:
        """Run the first batch, for what the factorisations have to know beforehand."""
        names = {site.users[0][0] for site in sites}
        seed = 0
        if random_state is not None:
            seed = int(check_random_state(random_state).randint(2**31 - 1))
        return cls(
            batches,
            following(model, names, batches),
            memory=memory,
            max_positions=max_positions,
            seed=seed,
        )

    def without(self, layers: Collection[str]) -> Calibration:
        """The same where the normalisations after these layers are gone."""
        norms = {name: norm for name, norm in self.norms.items() if name not in layers}
        return replace(self, norms=norms)

    def with_gradients(
        self, model: nn.Module, sites: Sequence[Site], verbose: bool | int
    ) -> Calibration:
        """Differentiate what the model says of the data: one backward pass."""
        found = output_moments(
            model,
            sites,
            self.batches,
            memory=self.memory,
            max_positions=self.max_positions,
            seed=self.seed,
            verbose=verbose,
        )
        return replace(self, gradients=dict(found))

    def norm_after(self, site: Site) -> Normalization | None:
        """Give the batch normalisation that reads what this weight gives, and nothing else."""
        return self.norms.get(site.users[0][0]) if site.alone else None

    def offset_to(self, site: Site) -> str | None:
        """Name of the module that can take what the mean input loses; see `FactorizedSite`."""
        if not site.alone:
            return None
        if site.modules[0]._parameters.get("bias") is not None:
            return site.users[0][0]
        norm = self.norm_after(site)
        return None if norm is None else norm.name

    def output_roots(self, site: Site, *, fisher: bool = False) -> list[Tensor | None]:
        """How errors of the outputs of each group count, as `Metric.output`; None for alike.

        fisher : by their effect on the outputs of the network, where it is known; otherwise by
            what a batch normalisation multiplies them by
        """
        if fisher and site.name in self.gradients:
            return [_root(g) for g in self.gradients[site.name]]
        norm = self.norm_after(site)
        if norm is None:
            return [None] * site.slot.groups
        scale = norm.scale.abs()
        # A channel that is multiplied by zero may come out as anything, but not as infinity.
        floor = 1e-6 * float(scale.max()) or 1.0
        return list(scale.clamp(min=floor).chunk(site.slot.groups))


def foldable_norms(model: nn.Module, norms: Mapping[str, Normalization]) -> dict[str, str]:
    """Names of the normalisations that can be multiplied into the layers before them."""
    layers = {name: model.get_submodule(name) for name in norms}
    users = Counter(id(p) for m in model.modules() for p in m._parameters.values())
    return {
        name: norms[name].name
        for name, layer in layers.items()
        # Where another layer has the same weight, there would be two of it.
        if foldable(layer) and users[id(layer.weight)] == 1
    }


def regress_sites(
    model: nn.Module,
    sites: Sequence[Site],
    calibration: Calibration,
    compete: Compete,
    known: Mapping[str, FactorizedSite],
    device: object,
    verbose: bool | int,
    *,
    fisher: bool = False,
    asked: Collection[int] = (),
) -> list[FactorizedSite]:
    """Factorise every weight that the data reaches, for the inputs that it meets there.

    compete : gives the decompositions for a weight; see `last_factor` for those that know
        nothing of inputs
    known : earlier results on the same data; those of unchanged weights are taken over
    fisher : whether errors of outputs count by what they do to the outputs of the network
    asked : ranks that have to be on offer
    """
    found: dict[str, FactorizedSite] = {}
    waiting: dict[str, tuple[Site, int, list[tuple[str, Decomposition]]]] = {}
    for site in sites:
        weight = working_weight(site, device)
        seen = fingerprint(site.name, weight)  # which also refuses NaN before any forward
        jobs = [(_settings(d, asked), d) for d in compete(site)]
        earlier = known.get(site.name)
        if earlier is not None and earlier.is_result_of(seen, [settings for settings, _ in jobs]):
            found[site.name] = earlier
        else:
            waiting[site.name] = (site, seen, jobs)
    open_ = [site for site, _, _ in waiting.values()]
    for name, statistics in stream(
        model,
        open_,
        calibration.batches,
        memory=calibration.memory,
        max_positions=calibration.max_positions,
        seed=calibration.seed,
        verbose=verbose,
    ):
        site, seen, jobs = waiting[name]
        weight = working_weight(site, device)
        roots = calibration.output_roots(site, fisher=fisher)
        found[name] = _regress(site, seen, weight, statistics, jobs, calibration, roots, asked)
    for site in open_:
        if site.name not in found:
            shape, size = tuple(site.slot.shape[1:]), site.slot.size
            found[site.name] = FactorizedSite(site.name, shape, size, 0, (), reason=NOT_REACHED)
    return [found[site.name] for site in sites]


def _regress(
    site: Site,
    seen: int,
    weight: Tensor,
    statistics: Statistics,
    jobs: Sequence[tuple[str, Decomposition]],
    calibration: Calibration,
    roots: Sequence[Tensor | None],
    asked: Collection[int],
) -> FactorizedSite:
    means, sensitivity = None, None
    offset_to = calibration.offset_to(site)
    moments = statistics.moments
    if moments is None:
        parts = [_of_lookups(weight, statistics, decomposition) for _, decomposition in jobs]
    else:
        grams = moments.gram
        if offset_to is not None:
            grams = moments.covariance
            inputs = moments.mean.to(weight.device)
            means = inputs, (weight.flatten(2).to(inputs) @ inputs[..., None])[..., 0]
        # Once for all decompositions: a product of the weight with its largest companion.
        metrics = [
            Metric.of_inputs(group, gram.to(weight.device), on(weight.device, root), rest)
            for group, gram, root, rest in zip(
                weight, grams, roots, noise(moments.gram), strict=True
            )
        ]
        if site.name in calibration.gradients:
            gradients = calibration.gradients[site.name].to(weight.device)
            sensitivity = kfac_energy(weight, grams.to(weight.device), gradients)
        parts = [regressed(d, weight, metrics, asked) for _, d in jobs]
    candidates = tuple(
        Candidate(settings, found)
        for (settings, _), found in zip(jobs, parts, strict=True)
        if found
    )
    return FactorizedSite(
        site.name,
        tuple(weight.shape[1:]),
        site.slot.size,
        seen,
        candidates,
        tried=tuple(settings for settings, _ in jobs),
        means=means,
        offset_to=offset_to if means is not None else None,
        sensitivity=sensitivity,
        reason=None if candidates else WEIGHTS_ONLY,
    )


def _settings(decomposition: Decomposition, asked: Collection[int]) -> str:
    """What a factorisation of the same weight depends on."""
    # The others offer every rank, whatever is asked for.
    more = "" if knows_inputs(decomposition) else f" with ranks {sorted(asked)}"
    return f"{decomposition!r}{more}"


def _of_lookups(
    weight: Tensor, statistics: Statistics, decomposition: Decomposition
) -> list[Factorization]:
    """Factorise an embedding with every row as often as the data looks it up.

    One more look-up each, so that rows which the data does not have are kept as well as
    the others allow.
    """
    assert statistics.lookups is not None
    often = (statistics.lookups.to(weight) + 1).sqrt()[:, None]
    parts = [decomposition.factorize(often * w) for w in weight]
    # Of a tall matrix these keep directions of rows, on which the weight itself can be
    # projected: the best for its rows, each counted so often.
    tall = len(often) > weight.shape[-1]
    if tall and all(isinstance(part, MatrixFactorization) for part in parts):
        return parts
    return [decomposition.factorize(group) for group in weight]


def _root(moment: Tensor) -> Tensor:
    """R with R^T R = G and a little more, of a second moment G (out, out) or its diagonal."""
    diagonal = moment if moment.dim() == 1 else moment.diagonal()
    # Of logits, for one, what all have in common does not count at all.
    damping = DAMPING * (float(diagonal.mean()) or 1.0)
    if moment.dim() == 1:
        return (moment + damping).sqrt()
    identity = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    return cholesky(moment + damping * identity).mT.contiguous()


def importances(
    sites: Sequence[FactorizedSite], sensitivity: float | str
) -> Iterator[dict[str, float]]:
    """Yield what to multiply the relative error of each site by, for each power to be tried.

    sensitivity : power of the sites' K-FAC energies, or "auto" for several
    """
    # Rounding leaves less than nothing of inputs that never change.
    known = {s.name: s.sensitivity for s in sites if s.sensitivity and s.sensitivity > 0}
    typical = exp(fmean(map(log, known.values()))) if known else 1.0
    for power in POWERS if isinstance(sensitivity, str) else (sensitivity,):
        yield {name: (value / typical) ** power for name, value in known.items()} if power else {}


def noise(grams: Tensor) -> list[float]:
    """What is left by rounding of second moments (groups, n, n) that cancel with the mean's."""
    return [ROUNDING * float(gram.diagonal().mean()) for gram in grams]


def on(device: torch.device, tensor: Tensor | None) -> Tensor | None:
    """Move what there is."""
    return None if tensor is None else tensor.to(device)
