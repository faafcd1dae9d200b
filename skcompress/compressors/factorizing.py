"""From the weights of a model to factorisations, and from those to parameters."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm.auto import tqdm

from ..errors import CalibratedWeightError, MetaWeightError, NonFiniteWeightError
from ..factorized import kind_of
from ..factorized.chain import empty_factors, merge_groups, merge_stages, multiply_out
from ..plan import LayerPlan
from ..protocols import Choice, Curve, Decomposition, Factorization, Factors, Layer, Spectrum
from ..selection import Site

Compete = Callable[[Site], list[Decomposition]]


@dataclass(frozen=True)
class Candidate:
    """One way of cutting up one weight: a factorisation per group, and their sum.

    settings : the decomposition with its parameters, printed
    """

    settings: str
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
    tried : settings of the decompositions that were asked; None where these are the candidates'
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
    fingerprint: int
    candidates: tuple[Candidate, ...]
    tried: tuple[str, ...] | None = None
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
        parts = [part.trim(rank) for part in chosen.parts]
        return replace(self, candidates=(Candidate(chosen.settings, parts),))

    def is_of(self, weight: Tensor) -> bool:
        """Whether a weight (groups, out, in, *kernel) is the one that this is about."""
        return fingerprint(self.name, weight) == self.fingerprint

    def is_result_of(self, fingerprint: int, settings: Sequence[str]) -> bool:
        """Whether it is of the weight with this fingerprint, cut up in these ways."""
        tried = self.tried
        if tried is None:
            tried = tuple(candidate.settings for candidate in self.candidates)
        return self.fingerprint == fingerprint and tried == tuple(settings)

    def parts(self, scheme: str, fingerprint: int) -> list[Factorization] | None:
        """Factorisations for a scheme, if these are of the weight with this fingerprint."""
        if fingerprint != self.fingerprint:
            return None
        return next((c.parts for c in self.candidates if c.parts[0].curve.scheme == scheme), None)


def factorize_sites(
    sites: Sequence[Site],
    compete: Compete,
    known: Mapping[str, FactorizedSite],
    device: Any,
    n_jobs: int | None,
    verbose: bool | int,
) -> list[FactorizedSite]:
    """Factorise every weight in all ways that compete for it.

    compete : gives the decompositions for a weight
    known : earlier results; those of unchanged weights are taken over
    """

    found: dict[str, FactorizedSite] = {}
    settings: dict[str, str] = {}  # printing an estimator is slow: once per scheme

    def tasks() -> Iterator[Any]:
        for site in tqdm(sites, desc="factorize", unit="layer", disable=not verbose):
            weight = working_weight(site, device)
            seen = fingerprint(site.name, weight)
            decompositions = compete(site)
            for d in decompositions:
                if d.scheme not in settings:
                    settings[d.scheme] = repr(d)
            names = [settings[d.scheme] for d in decompositions]
            earlier = known.get(site.name)
            if earlier is not None and earlier.is_result_of(seen, names):
                found[site.name] = earlier
            else:
                jobs = list(zip(names, decompositions, strict=True))
                yield delayed(_factorize)(site.name, site.slot.size, seen, jobs, weight)

    # A hint, not an order: joblib.parallel_config of the user decides.
    made = Parallel(n_jobs=n_jobs, prefer="threads")(tasks())
    found.update((site.name, site) for site in made)
    return [found[site.name] for site in sites]


def _factorize(
    name: str, size: int, seen: int, jobs: Sequence[tuple[str, Decomposition]], weight: Tensor
) -> FactorizedSite:
    candidates = tuple(
        Candidate(settings, [decomposition.factorize(group) for group in weight])
        for settings, decomposition in jobs
    )
    return FactorizedSite(name, tuple(weight.shape[1:]), size, seen, candidates)


def working_weight(site: Site, device: Any) -> Tensor:
    """Weight (groups, out, in, *kernel) as decompositions take it."""
    weight = site.slot.read().detach()
    if weight.is_meta:
        raise MetaWeightError(site.name)
    return weight.to(device=device, dtype=torch.promote_types(weight.dtype, torch.float32))


_PROBE = 4096


@lru_cache(maxsize=8)
def _probe(dtype: torch.dtype, device: torch.device) -> Tensor:
    steps = torch.arange(1, _PROBE + 1, dtype=torch.float64, device=device)
    return steps.mul_(2.399963).cos_().to(dtype)


def fingerprint(name: str, weight: Tensor) -> int:
    """Number that changes when the values or the shape of a weight change.

    A checksum of the products of the flattened weight's rows with one fixed vector: one
    pass at the speed of memory, where hashing bytes would cost more than the SVDs saved.
    The same pass finds NaN and infinity: `NonFiniteWeightError` of the layer `name`.
    """
    flat = weight.reshape(-1)
    probe = _probe(weight.dtype, weight.device)
    n_rows = len(flat) // _PROBE
    rows = flat[: n_rows * _PROBE].view(n_rows, _PROBE) @ probe
    rest = flat[n_rows * _PROBE :]
    sums = torch.cat([rows, (rest @ probe[: len(rest)])[None]])
    if not torch.isfinite(sums).all():
        n_bad = int(weight.numel() - torch.isfinite(weight).sum())
        if n_bad:  # finite weights can still overflow the sums
            raise NonFiniteWeightError(name, n_bad, weight.shape)
    return zlib.crc32(sums.cpu().numpy().tobytes(), zlib.crc32(repr(tuple(weight.shape)).encode()))


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
        weight = working_weight(site, device)
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
    tensors = [t.to(stored).contiguous() for t in factors.tensors]
    pivots = [p and replace(p, order=p.order.to(stored.device)) for p in factors.pivots]
    parameters = tuple(nn.Parameter(t, trained) for t in tensors)
    return replace(factors, tensors=parameters, pivots=tuple(pivots)), offset


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
    (slot,) = kind.slots(module)
    slot.read().detach().copy_(known.refitted)
    return None if known.means is None else missing_mean(known.refitted, *known.means)
