"""The data of one fit, and what the factorisations have to know of the network beforehand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from sklearn.utils import check_random_state
from torch import Tensor, nn

from ..linalg import cholesky
from ..network.batches import Batches, n_samples
from ..network.normalization import Normalization, foldable, following
from ..network.weights import Site
from ..protocols import SecondMoment
from ..statistics.collecting import stream
from ..statistics.gradients import output_moments
from ..statistics.moments import Statistics
from .sharing import Known, Shared

# Of a second moment of gradients, in units of the mean of its diagonal.
DAMPING = 1e-3
# Squares of what rounding leaves of a number on its way through a network, relative to its own.
ROUNDING = 1e-10


@dataclass(frozen=True)
class Calibration:
    """The data of one fit, what is known of the network from it, and how much of it is used.

    known : earlier results for the same network and data
    norms : the batch normalisation that alone reads what a layer gives, by the layer's name
    gradients : second moments of the gradients at what each weight gives, (groups, out, out) or
        their diagonals (groups, out), by the site's name; see `calibration.output_moments`
    fisher : whether errors of what a weight gives count by what they do to the network's outputs
    memory, max_positions, seed : as for `collecting.stream`
    """

    batches: Batches
    known: Known
    norms: Mapping[str, Normalization] = field(default_factory=dict)
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    memory: float = 2**31
    max_positions: int | None = None
    seed: int = 0
    fisher: bool = False

    @classmethod
    def observed(
        cls,
        batches: Batches,
        model: nn.Module,
        sites: Sequence[Site],
        known: Known | None = None,
        *,
        memory: float,
        max_positions: int | None,
        random_state: Any,
        fisher: bool = False,
    ) -> Calibration:
        """Run the first batch, for what the factorisations have to know beforehand.

        known : earlier results; None for a fit that shares nothing
        """
        names = sorted({site.users[0][0] for site in sites})
        seed = 0
        if random_state is not None:
            seed = int(check_random_state(random_state).randint(2**31 - 1))
        known = known or Known(Shared(memory=0), None)
        key = known.key("normalizations", *names)
        return cls(
            batches,
            known,
            known.shared.get(key, lambda: following(model, names, batches)),
            memory=memory,
            max_positions=max_positions,
            seed=seed,
            fisher=fisher,
        )

    def without(self, layers: Collection[str]) -> Calibration:
        """The same where the normalisations after these layers are gone."""
        if not layers:
            return self
        norms = {name: norm for name, norm in self.norms.items() if name not in layers}
        return replace(self, norms=norms, known=self.known.but("folded", *sorted(layers)))

    def part(self, n: int) -> Calibration:
        """Use every k-th batch, `n` samples or more; all where there are not twice as many."""
        try:
            n_batches = len(self.batches)
        except TypeError:  # of a stream nobody knows
            return self
        every = n_batches * n_samples(next(iter(self.batches))) // n
        if every < 2:
            return self
        batches = replace(self.batches, every=every)
        return replace(self, batches=batches, known=self.known.but("every", every))

    @property
    def positions(self) -> Hashable:
        """Which positions are used: part of the name of a result that depends on it."""
        # Nothing is drawn where all are used.
        return "all" if self.max_positions is None else (self.max_positions, self.seed)

    @property
    def _limits(self) -> dict[str, Any]:
        return {"memory": self.memory, "max_positions": self.max_positions, "seed": self.seed}

    def stream(
        self, model: nn.Module, sites: Sequence[Site], verbose: bool | int
    ) -> Iterator[tuple[str, Statistics]]:
        """Yield what each weight meets on the data, as `collecting.stream`."""
        return stream(model, sites, self.batches, **self._limits, verbose=verbose)

    def with_gradients(
        self, model: nn.Module, sites: Sequence[Site], verbose: bool | int
    ) -> Calibration:
        """Differentiate what the model says of the data: one backward pass."""

        def differentiated() -> dict[str, Tensor]:
            return dict(
                output_moments(
                    model,
                    sites,
                    self.batches,
                    **self._limits,
                    verbose=verbose,
                )
            )

        names = (site.name for site in sites)
        key = self.known.key("gradients", self.memory, self.positions, self.seed, *names)
        return replace(self, gradients=self.known.shared.get(key, differentiated))

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

    def output_roots(self, site: Site) -> list[Tensor | None]:
        """How errors of the outputs of each group count, as `Metric.output`; None for alike.

        Where the gradients say nothing: by what a batch normalisation multiplies them by.
        """
        if self.fisher and site.name in self.gradients:
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


def _root(moment: Tensor) -> Tensor:
    """R with R^T R = G and a little more, of a second moment G (out, out) or its diagonal."""
    diagonal = moment if moment.dim() == 1 else moment.diagonal()
    # Of logits, for one, what all have in common does not count at all.
    damping = DAMPING * (float(diagonal.mean()) or 1.0)
    if moment.dim() == 1:
        return (moment + damping).sqrt()
    identity = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    return cholesky(moment + damping * identity).mT.contiguous()


def noise(covariance: SecondMoment, mean: Tensor) -> float:
    """Variance that inputs which never change have by rounding."""
    return ROUNDING * float((covariance.diagonal + mean.square()).mean())


def on(device: torch.device, tensor: Tensor | None) -> Tensor | None:
    """Move what there is."""
    return None if tensor is None else tensor.to(device)
