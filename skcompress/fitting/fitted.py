"""Everything that a fit learnt, and the one way to apply it to a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import CalibratedWeightError
from ..layers import kind_of, substitute
from ..layers.chain import empty_factors, merge_stages
from ..layers.writing import write_weights
from ..network.normalization import fold
from ..network.weights import Patterns, Selection, Site, check_model, select
from ..plan import Plan
from ..protocols import Decomposition, Factors, Rank, Storage
from ..protocols.product import multiply_out
from ..threads import results_side_by_side
from .candidates import Means, working_weight
from .choices import compare_to_plan, restore_ties
from .digests import Fingerprint, fingerprint
from .offers import stored

NormStatistics = Mapping[str, tuple[Tensor, Tensor]]


class Replacement(ABC):
    """What stands for one weight (groups, out, in, *kernel).

    fingerprint : of the weight that was fitted
    keeps_layer : whether it is a weight of the same shape, in the same layer
    """

    keeps_layer: ClassVar[bool] = True
    fingerprint: Fingerprint

    @abstractmethod
    def value(self, weight: Tensor) -> Factors | Tensor:
        """Give it for the weight that was fitted: factors, or a weight of the same shape."""

    @abstractmethod
    def anew(self, weight: Tensor) -> Factors | Tensor:
        """Do for another weight of this shape what was done for the one that was fitted."""

    def without_values(self, weight: Tensor) -> Factors | None:
        """Give factors without values for a weight without; None where it stays a weight."""
        return None


@dataclass(frozen=True)
class Recipe:
    """How factors are made of a weight (groups, out, in, *kernel)."""

    decomposition: Decomposition
    storage: Storage
    rank: Rank

    def factors(self, weight: Tensor) -> Factors:
        """Factorise a weight, by itself."""
        parts = [self.decomposition.factorize(group).factors(group, self.rank) for group in weight]
        return stored(parts, self.storage)

    def without_values(self, weight: Tensor) -> Factors:
        """Give factors of the shapes that those of a weight have, on its device."""
        groups, *shape = weight.shape
        stages = self.storage.stages(self.decomposition.stages(shape, self.rank))
        return empty_factors(merge_stages(stages, groups), weight.dtype, str(weight.device))


@dataclass(frozen=True)
class FactoredWeight(Replacement):
    """Factors of a weight, and how others are made of other weights."""

    keeps_layer = False
    fingerprint: Fingerprint
    factors: Factors
    recipe: Recipe

    def value(self, weight: Tensor) -> Factors:
        return self.factors

    def anew(self, weight: Tensor) -> Factors:
        return self.recipe.factors(weight)

    def without_values(self, weight: Tensor) -> Factors:
        return self.recipe.without_values(weight)


@dataclass(frozen=True)
class DenseWeight(Replacement):
    """Other values for a weight, (groups, out, in, *kernel)."""

    fingerprint: Fingerprint
    values: Tensor

    def value(self, weight: Tensor) -> Tensor:
        return self.values

    def anew(self, weight: Tensor) -> Tensor:
        return weight


@dataclass(frozen=True)
class Fitted:
    """What a fit learnt of a model.

    plan : what happens to each weight; it names all of them
    replacements : of weights, by name
    offsets : what is to be added to the outputs of layers with bias, or of those before a batch
        normalisation, by the name of that module; by the parameter's where there are several
    norms : mean and variance of batch normalisations, where they are to be others
    folded : normalisations that are multiplied into the layers before them, by these layers
    patterns : `layers` and `exclude` of the fit
    inside_factors : whether layers that an earlier compressor has put in are layers like others
    calibrated : whether data took part, so that other weights are not what was fitted
    """

    plan: Plan
    replacements: Mapping[str, Replacement]
    offsets: Mapping[str, Tensor] = field(default_factory=dict)
    norms: NormStatistics = field(default_factory=dict)
    folded: Mapping[str, str] = field(default_factory=dict)
    patterns: tuple[Patterns, Patterns] = (None, ())
    inside_factors: bool = False
    calibrated: bool = False

    def applied_to(self, model: nn.Module, owner: str = "transform") -> nn.Module:
        """Give a smaller copy of a model.

        model : the fitted one, or another one of the same architecture: a later checkpoint, where
            no data took part, or a model on the meta device, which gives the structure alone

        Raises
        ------
        PlanMismatchError : the first difference to the model that was fitted
        CalibratedWeightError : other weights than were fitted, to data
        """
        check_model(owner, model)
        return self.edited(fold(model, self.folded) if self.folded else model)

    def edited(self, model: nn.Module) -> nn.Module:
        """Do the same for a model whose normalisations are folded already."""
        selection = select(model, *self.patterns, inside_factors=self.inside_factors)
        self._check(model, selection)
        factors: dict[str, dict[str, Factors]] = defaultdict(dict)
        dense: dict[str, list[Site]] = defaultdict(list)
        for site in selection.sites:
            known = self.replacements.get(site.name)
            if known is None:
                continue
            if known.keeps_layer:  # and is written once, however many layers share it
                dense[site.users[0][0]].append(site)
                continue
            made = parameters(self._made(site), site)
            for module, slot in site.users:
                factors[module][slot] = made
        result = substitute(model, factors)

        def write_into(name: str) -> None:
            found = [site for site in dense[name] if not site.slot.read().is_meta]
            # One layer at a time in each thread: all values at once would be a second model.
            values = {site.users[0][1]: self._made(site) for site in found}
            write(result.get_submodule(name), values)

        results_side_by_side(
            write_into, list(dense), size=lambda name: sum(s.slot.size for s in dense[name])
        )
        for name, offset in self.offsets.items():
            add_offset(result.get_submodule, name, offset)
        self._narrow(result)
        set_norms(result, self.norms)
        return result

    def compares(self, name: str) -> bool:
        """Whether errors are to be measured of the outputs of the layer with this weight."""
        return self.plan[name].reason is None

    def _check(self, model: nn.Module, selection: Selection) -> None:
        """Refuse another model than the plan is for, naming the first difference."""
        restore_ties(self.plan, selection)
        compare_to_plan(self.plan, selection)

    def _narrow(self, result: nn.Module) -> None:
        """Take whole channels out, in place, where a plan says so."""

    def _made(self, site: Site) -> Any:
        """What stands for a weight: factors or a weight, as its replacement has it."""
        known, weight = self.replacements[site.name], site.slot.read().detach()
        if weight.is_meta:
            return known.without_values(weight)
        # Made where the weight was fitted, whence the model may have been moved.
        working = working_weight(site, known.fingerprint.device)
        if fingerprint(site.name, working) == known.fingerprint:
            return known.value(working)
        if self.calibrated:
            raise CalibratedWeightError(site.name)
        return known.anew(working)


def parameters(factors: Factors, site: Site, *, copy: bool = True) -> Factors:
    """Give factors as parameters, with the weight's precision and device.

    copy : whether they have to be others than the factors, which somebody else holds
    """
    like, trained = site.slot.read().detach(), site.slot.requires_grad
    settings: dict[str, Any] = {"copy": copy, "memory_format": torch.contiguous_format}
    held = factors.holding([nn.Parameter(t.to(like, **settings), trained) for t in factors.stored])
    pivots = tuple(p and replace(p, order=p.order.to(like.device)) for p in held.pivots)
    sparse = held.sparse
    if sparse is not None:
        sparse = replace(sparse, positions=sparse.positions.to(like.device))
    return replace(held, pivots=pivots, sparse=sparse)


def write(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Write weights (groups, out, in, *kernel) into a layer, in place, by the name of the slot."""
    kind = kind_of(module)
    assert kind is not None
    write_weights(kind, module, values)


def missing_mean(value: Factors | Tensor, means: Means) -> Tensor:
    """Difference E[y] - W' E[x'] that is to be added, of shape (groups * out,), float64.

    value : W'; means : (groups, n) of the inputs x' and (groups, out) of the outputs y
    """
    inputs, outputs = means
    groups = len(inputs)
    weight = multiply_out(value, groups) if isinstance(value, Factors) else value
    given = weight.reshape(*outputs.shape, -1).to(inputs) @ inputs[..., None]
    return (outputs - given[..., 0]).flatten()


def add_offset(module_of: Callable[[str], nn.Module], name: str, offset: Tensor) -> None:
    """Add to what a layer gives, in place: by its bias, or by the mean that is taken off it.

    module_of : gives a module of the network by its name
    name : of the layer, of the batch normalisation after it, or of a bias among several
    """
    owner, _, own = name.rpartition(".")
    bias: Any = module_of(owner)._parameters.get(own)
    if bias is None:
        module: Any = module_of(name)
        if isinstance(module, _BatchNorm):
            assert module.running_mean is not None
            module.running_mean.sub_(offset.to(module.running_mean))
            return
        bias = module.bias
    bias.data.add_(offset.to(bias.data))


def set_norms(model: nn.Module, norms: NormStatistics) -> None:
    """Write the statistics of batch normalisations, in place."""
    for name, statistics in norms.items():
        norm: Any = model.get_submodule(name)
        for buffer, value in zip((norm.running_mean, norm.running_var), statistics, strict=True):
            buffer.copy_(value)
