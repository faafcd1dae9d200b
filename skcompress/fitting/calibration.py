"""The data of one fit: what is seen of the network on it, and how much of it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from sklearn.utils import check_random_state
from torch import Tensor, nn

from ..linalg import cholesky
from ..network.batches import Batches, n_samples
from ..network.observing import observer
from ..network.structure import Structure, look
from ..network.weights import Site
from ..protocols import Cost, SecondMoment
from ..statistics.collecting import stream
from ..statistics.gradients import output_moments
from ..statistics.moments import Statistics
from ..statistics.passes import Positions
from .memo import Recall

# Of a second moment of gradients, in units of the mean of its diagonal.
DAMPING = 1e-3
# Squares of what rounding leaves of a number on its way through a network, relative to its own.
ROUNDING = 1e-10


@dataclass(frozen=True)
class Calibration:
    """A network on data, as one fit sees it.

    sites : the weights that are looked at
    recall : what earlier fits have found out
    gradients : second moments of the gradients at what each weight gives, (groups, out, out) or
        their diagonals (groups, out), by the site's name; see `statistics.gradients`
    fisher : whether errors of what a weight gives count by what they do to the network's outputs
    memory, max_positions, seed : as for `statistics.collecting.stream`
    """

    model: nn.Module
    sites: Sequence[Site]
    batches: Batches
    structure: Structure
    recall: Recall
    memory: float = 2**31
    max_positions: Positions = None
    seed: int = 0
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    fisher: bool = False

    @classmethod
    def observed(
        cls,
        model: nn.Module,
        sites: Sequence[Site],
        batches: Batches,
        recall: Recall,
        *,
        memory: float,
        max_positions: Positions,
        random_state: Any,
    ) -> Calibration:
        """Run the first batch, for what the fit has to know beforehand."""
        names = list(dict.fromkeys(name for site in sites for name, _ in site.users))
        seed = 0
        if random_state is not None:
            seed = int(check_random_state(random_state).randint(2**31 - 1))
        structure = recall(look, model, names, batches)
        return cls(model, sites, batches, structure, recall, memory, max_positions, seed)

    def part(self, n: int) -> Calibration:
        """Use every k-th batch, `n` samples or more; all where there are not twice as many."""
        try:
            n_batches = len(self.batches)
        except TypeError:  # of a stream nobody knows
            return self
        every = n_batches * n_samples(next(iter(self.batches))) // n
        return self if every < 2 else replace(self, batches=replace(self.batches, every=every))

    def statistics(
        self, sites: Sequence[Site], verbose: bool | int
    ) -> Iterator[tuple[Site, Statistics]]:
        """Yield what each weight meets on the data; weights that nothing reaches are missing."""
        return self.recall.each(
            _statistics, sites, self.model, self.batches, *self.draws,
            spare=True, aside={"memory": self.memory, "verbose": verbose},
        )  # fmt: skip

    @property
    def draws(self) -> tuple[Positions, int]:
        """How many positions are drawn, and the seed of the draws; any where all are used."""
        return self.max_positions, 0 if self.max_positions is None else self.seed

    @property
    def readers(self) -> dict[str, str]:
        """The module whose outputs are to stay what they were, by the name of the weight.

        What a layer loses of its mean is made up for after the normalisation only.
        """
        norms = {site.name: self.structure.norm_after(site) for site in self.sites}
        return {s.name: n.name if (n := norms[s.name]) else s.users[0][0] for s in self.sites}

    def cost_of(self, cost: Cost, network: nn.Module) -> float:
        """Give what a network costs, in one forward of the first batch where that matters."""
        if not cost.needs_inputs:
            return cost.of_model(network, (), {})
        batch = next(iter(self.batches))
        return cost.of_model(observer(network), batch.args, batch.kwargs)

    def with_gradients(self, fisher: bool, verbose: bool | int) -> Calibration:
        """Differentiate what the model says of the data: one backward pass."""
        found = self.recall(
            _gradients, self.model, self.sites, self.batches, self.memory, self.max_positions,
            self.seed, aside={"verbose": verbose},
        )  # fmt: skip
        return replace(self, gradients=found, fisher=fisher)

    def roots(self, site: Site) -> tuple[Tensor | None, ...]:
        """How errors of the outputs of each group count, as `Metric.output`; None for alike.

        Where the gradients say nothing: by what a batch normalisation multiplies them by.
        """
        if self.fisher and site.name in self.gradients:
            return tuple(_root(g) for g in self.gradients[site.name])
        norm = self.structure.norm_after(site)
        if norm is None:
            return (None,) * site.slot.groups
        scale = norm.scale.abs()
        # A channel that is multiplied by zero may come out as anything, but not as infinity.
        floor = 1e-6 * float(scale.max()) or 1.0
        return tuple(scale.clamp(min=floor).chunk(site.slot.groups))


def _statistics(
    sites: Sequence[Site],
    model: nn.Module,
    batches: Batches,
    max_positions: Positions,
    seed: int,
    **aside: Any,
) -> Iterator[tuple[Site, Statistics]]:
    by_name = {site.name: site for site in sites}
    limits: dict[str, Any] = {"max_positions": max_positions, "seed": seed}
    for name, found in stream(model, sites, batches, **limits, **aside):
        yield by_name[name], found


def _gradients(
    model: nn.Module,
    sites: Sequence[Site],
    batches: Batches,
    memory: float,
    max_positions: Positions,
    seed: int,
    **aside: Any,
) -> dict[str, Tensor]:
    limits: dict[str, Any] = {"memory": memory, "max_positions": max_positions, "seed": seed}
    return dict(output_moments(model, sites, batches, **limits, **aside))


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
