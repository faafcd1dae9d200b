"""Factorisations in the metric of the activations: what `fit` does with data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ..calibration import Batches, Statistics, stream
from ..decompositions.svd import MatrixFactorization
from ..protocols import Decomposition, Factorization, Metric
from ..selection import Site
from .factorizing import Candidate, Compete, FactorizedSite, fingerprint, working_weight

NOT_REACHED = "no batch of the data reaches it"
WEIGHTS_ONLY = "works in the metric of the weights only: use metric='weights'"


def regress_sites(
    model: nn.Module,
    sites: Sequence[Site],
    batches: Batches,
    compete: Compete,
    known: Mapping[str, FactorizedSite],
    device: object,
    verbose: bool | int,
) -> list[FactorizedSite]:
    """Factorise every weight that the data reaches, for the inputs that it meets there.

    compete : gives the decompositions for a weight of some shape; those that know nothing
        of inputs take no part
    known : earlier results on the same data; those of unchanged weights are taken over
    """
    found: dict[str, FactorizedSite] = {}
    waiting: dict[str, tuple[Site, int, list[tuple[str, Decomposition]]]] = {}
    for site in sites:
        weight = working_weight(site, device)
        seen = fingerprint(site.name, weight)  # which also refuses NaN before any forward
        jobs = [(repr(d), d) for d in compete(weight.shape[1:]) if knows_inputs(d)]
        earlier = known.get(site.name)
        if earlier is not None and earlier.is_result_of(seen, [settings for settings, _ in jobs]):
            found[site.name] = earlier
        else:
            waiting[site.name] = (site, seen, jobs)
    open_ = [site for site, _, _ in waiting.values()]
    for name, statistics in stream(model, open_, batches, verbose=verbose):
        site, seen, jobs = waiting[name]
        found[name] = _regress(site, seen, working_weight(site, device), statistics, jobs)
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
) -> FactorizedSite:
    means = None
    moments = statistics.moments
    if moments is None:
        parts = [_of_lookups(weight, statistics, decomposition) for _, decomposition in jobs]
    else:
        grams = moments.gram
        if takes_offset(site):
            grams = moments.covariance
            inputs = moments.mean.to(weight.device)
            means = inputs, (weight.flatten(2).to(inputs) @ inputs[..., None])[..., 0]
        # Once for all decompositions: a product of the weight with its largest companion.
        metrics = [
            Metric.of_inputs(group, gram.to(weight.device))
            for group, gram in zip(weight, grams, strict=True)
        ]
        parts = [
            [d.regress(group, metric) for group, metric in zip(weight, metrics, strict=True)]
            for _, d in jobs
        ]
    candidates = tuple(
        Candidate(settings, found) for (settings, _), found in zip(jobs, parts, strict=True)
    )
    return FactorizedSite(
        site.name,
        tuple(weight.shape[1:]),
        site.slot.size,
        seen,
        candidates,
        means=means,
        reason=None if candidates else WEIGHTS_ONLY,
    )


def knows_inputs(decomposition: Decomposition) -> bool:
    """Whether a decomposition can work in the metric of the activations."""
    return type(decomposition).regress is not Decomposition.regress


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


def takes_offset(site: Site) -> bool:
    """Whether the layer has a bias of its own that can take what the mean input loses."""
    module = site.modules[0]
    bias = module._parameters.get("bias")
    return len(site.users) == 1 and site.slot.name == "" and bias is not None
