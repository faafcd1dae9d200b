"""Factorisations in the metric of the activations: what `fit` does with data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

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
    for site in sites:
        weight = working_weight(site, device)
        seen = fingerprint(site.name, weight)  # which also refuses NaN before any forward
        names = [repr(d) for d in compete(weight.shape[1:]) if knows_inputs(d)]
        if site.name in known and known[site.name].is_result_of(seen, names):
            found[site.name] = known[site.name]
    open_ = {site.name: site for site in sites if site.name not in found}
    for name, statistics in stream(model, list(open_.values()), batches, verbose=verbose):
        site = open_[name]
        weight = working_weight(site, device)
        able = [d for d in compete(weight.shape[1:]) if knows_inputs(d)]
        found[name] = _regress(site, weight, statistics, able)
    for name, site in open_.items():
        if name not in found:
            shape, size = tuple(site.slot.shape[1:]), site.slot.size
            found[name] = FactorizedSite(name, shape, size, 0, (), reason=NOT_REACHED)
    return [found[site.name] for site in sites]


def _regress(
    site: Site, weight: Tensor, statistics: Statistics, decompositions: Iterable[Decomposition]
) -> FactorizedSite:
    means = None
    candidates = []
    for decomposition in decompositions:
        if statistics.moments is None:
            parts = _of_lookups(weight, statistics, decomposition)
        else:
            moments = statistics.moments
            centred = takes_offset(site)
            if centred:
                inputs = moments.mean.to(weight.device)
                means = inputs, (weight.flatten(2).to(inputs) @ inputs[..., None])[..., 0]
            grams = moments.covariance if centred else moments.gram
            parts = [
                decomposition.regress(group, Metric.of_inputs(group, gram.to(weight.device)))
                for group, gram in zip(weight, grams, strict=True)
            ]
        candidates.append(Candidate(repr(decomposition), parts))
    return FactorizedSite(
        site.name,
        tuple(weight.shape[1:]),
        site.slot.size,
        fingerprint(site.name, weight),
        tuple(candidates),
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
