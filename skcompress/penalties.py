"""A regularizer on a whole model: in the loss, in the gradients, or as a proximal step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from numbers import Real
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from .errors import ComputedWeightError, NonFiniteWeightError, ProximalError, RegularizerValueError
from .network.weights import (
    Site,
    as_patterns,
    check_model,
    check_patterns,
    flat_shape,
    require_sites,
    select,
)
from .protocols import Modelwise, Regularizer


@dataclass
class _Participation:
    """Which weights of a model take part in a penalty, and how often it was asked for each way.

    state : everything that the choice of weights depends on
    """

    state: object = None
    sites: list[Site] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)


class OfWeights(Modelwise):
    """Regularizers on the weights that compressors work on."""

    def penalty(self, regularizer: Regularizer, model: nn.Module) -> Tensor:
        model = unwrap(regularizer, model)
        return _total(model, _due(regularizer, model, "penalty"))

    def add_gradients_(self, regularizer: Regularizer, model: nn.Module, scale: float) -> None:
        _add_gradients(regularizer, unwrap(regularizer, model), scale)

    def prox_(self, regularizer: Regularizer, model: nn.Module, step: float) -> None:
        _apply_prox(regularizer, unwrap(regularizer, model), step)


def mean_penalty(regularizer: Regularizer, model: nn.Module) -> float:
    """What a call of the regularizer gives on average, whatever turn it is; counts as no call."""
    model = unwrap(regularizer, model)
    terms = [(t, strength, _participation(t, model).sites) for t, strength in _terms(regularizer)]
    with torch.no_grad():
        return float(_total(model, [term for term in terms if term[1] > 0 and term[2]]))


def _total(model: nn.Module, terms: Iterable[tuple[Regularizer, float, list[Site]]]) -> Tensor:
    total = _anywhere(model).new_zeros((), dtype=torch.float32)
    for term, strength, sites in terms:
        weights = [site.slot.read() for site in sites]
        _check_finite(sites, weights)
        for weight in weights:
            with _full_precision(weight):
                for group in weight:
                    penalty = term.penalty(_at_least_float32(group))
                    total = total + strength * penalty.to(total.device)
    return total


def _add_gradients(regularizer: Regularizer, model: nn.Module, scale: float) -> None:
    for term, strength, sites in _due(regularizer, model, "gradient"):
        # The graphs only lead from stored parameters to the weights that are read from
        # them: views, or what a parametrization computes.
        with torch.enable_grad():
            weights = [site.slot.read() for site in sites]
        _check_finite(sites, weights)
        slopes = [_Slope(site, weight) for site, weight in zip(sites, weights, strict=True)]
        groups = [_at_least_float32(group) for weight in weights for group in weight.detach()]
        totals = [group for slope in slopes for group in slope.total]
        if groups:
            with torch.no_grad(), _full_precision(groups[0]):
                term.add_gradients_(groups, totals, strength * scale)
        for slope in slopes:
            slope.hand_on()


def _apply_prox(regularizer: Regularizer, model: nn.Module, step: float) -> None:
    owner = type(regularizer).__name__
    if not (isfinite(step) and step >= 0):
        raise RegularizerValueError(f"{owner}.prox_", "step", "a finite number >= 0", step)
    if any(part is not regularizer for part in regularizer.summands):
        raise ProximalError(owner)
    with torch.no_grad():
        for term, strength, sites in _due(regularizer, model, "prox"):
            weights = [_stored(owner, site) for site in sites]
            _check_finite(sites, weights)
            for weight in weights:
                with _full_precision(weight):
                    for group in weight:
                        group.copy_(term.prox(_at_least_float32(group), step * strength))


def unwrap(regularizer: Regularizer, model: nn.Module) -> nn.Module:
    """Give the user's own module inside torch.compile's, or a data-parallel, wrapper."""
    check_model(type(regularizer).__name__, model)
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def _due(
    regularizer: Regularizer, model: nn.Module, way: str
) -> Iterator[tuple[Regularizer, float, list[Site]]]:
    """Yield the summands whose turn it is, each with its strength and its weights."""
    for term, strength in _terms(regularizer):
        found = _participation(term, model)
        turn = found.calls[way] % term.every == 0
        found.calls[way] += 1
        if turn and strength > 0 and found.sites:
            yield term, strength * term.every, found.sites


def _terms(regularizer: Regularizer) -> Iterator[tuple[Regularizer, float]]:
    """The penalties that are no sums, with the product of the strengths that they are under."""
    strength = _check_parameters(regularizer)
    for part in regularizer.summands:
        if part is regularizer:
            yield part, strength
        else:
            yield from ((term, strength * share) for term, share in _terms(part))


def _check_parameters(term: Regularizer) -> float:
    owner = type(term).__name__
    if not (isinstance(term.weight, Real) and isfinite(term.weight) and term.weight >= 0):
        raise RegularizerValueError(owner, "weight", "a finite number >= 0", term.weight)
    if isinstance(term.every, bool) or not (isinstance(term.every, int) and term.every >= 1):
        raise RegularizerValueError(owner, "every", "an int >= 1", term.every)
    return float(term.weight)


def _participation(term: Regularizer, model: nn.Module) -> _Participation:
    """Recall which weights of `model` take part; choose anew where something has changed.

    Choosing walks the whole model in Python, a noticeable part of a fast training step.
    """
    known = term.__dict__.setdefault("_participations", WeakKeyDictionary())
    found: _Participation = known.setdefault(model, _Participation())
    state = (
        term.layers is None,
        as_patterns(term.layers),
        as_patterns(term.exclude),
        tuple((id(p), p.requires_grad, p.shape) for p in model.parameters()),
    )
    if found.state != state:
        check_patterns("layers", term.layers, model)
        check_patterns("exclude", term.exclude, model)
        selection = select(model, term.layers, term.exclude)
        require_sites(type(term).__name__, selection)
        found.sites = [site for site in selection.sites if site.slot.requires_grad]
        found.state = state
    return found


def _anywhere(model: nn.Module) -> Tensor:
    return next((p.detach() for p in model.parameters()), torch.empty(()))


def _at_least_float32(weight: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _full_precision(weight: Tensor) -> torch.autocast:
    """Switch autocast off, which computes products in half precision."""
    return torch.autocast(weight.device.type, enabled=False)


def _check_finite(sites: Sequence[Site], weights: Sequence[Tensor]) -> None:
    # One sum per weight, and one transfer from the device for all: cheap beside a penalty.
    with torch.no_grad():
        sums = [w.sum(dtype=torch.promote_types(w.dtype, torch.float32)) for w in weights]
        if bool(torch.stack([s.to(sums[0].device) for s in sums]).isfinite().all()):
            return
        for site, weight in zip(sites, weights, strict=True):
            n_bad = int((~weight.isfinite()).sum())
            if n_bad:
                raise NonFiniteWeightError(site.name, n_bad, flat_shape(weight.shape))


class _Slope:
    """Where the gradient at one weight is added up: in `.grad` itself where that is possible.

    total : Tensor of the weight's shape (groups, out, in, *kernel), in float32 at least
    """

    def __init__(self, site: Site, weight: Tensor):
        self._stored = [p for p in site.slot.parameters if p.requires_grad]
        inside = _part_of_gradient(self._stored[0], weight) if len(self._stored) == 1 else None
        self._computed = weight if inside is None else None
        self.total = (
            torch.zeros_like(_at_least_float32(weight.detach())) if inside is None else inside
        )

    def hand_on(self) -> None:
        """Carry the total over to the parameters, where the weight is computed from them."""
        if self._computed is None:
            return
        # Not `backward`: that would run the hooks with which DistributedDataParallel and
        # others wait for the gradients of the loss.
        slope = self.total.to(self._computed.dtype)
        found = torch.autograd.grad(self._computed, self._stored, slope, allow_unused=True)
        for parameter, gradient in zip(self._stored, found, strict=True):
            if gradient is not None:
                _accumulate(parameter, gradient)


def _part_of_gradient(parameter: nn.Parameter, weight: Tensor) -> Tensor | None:
    """View `.grad` of a parameter as `weight` is a view of the parameter; None where it is not.

    A new array for each gradient, and to add it, takes longer than its last product.
    """
    weight = weight.detach()
    plain = type(weight) is Tensor and weight.dtype in (torch.float32, torch.float64)
    if not plain or weight.untyped_storage().data_ptr() != parameter.untyped_storage().data_ptr():
        return None
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    grad = parameter.grad.detach()
    if grad.layout != torch.strided or grad.stride() != parameter.stride():
        return None
    start = grad.storage_offset() + weight.storage_offset() - parameter.storage_offset()
    return grad.as_strided(weight.shape, weight.stride(), start)


def _accumulate(parameter: nn.Parameter, gradient: Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter).copy_(gradient)
    elif parameter.grad.is_sparse:  # of an Embedding(sparse=True): a penalty is on every row
        parameter.grad = gradient + parameter.grad
    else:
        parameter.grad.add_(gradient)


def _stored(owner: str, site: Site) -> Tensor:
    """Give the weight as a view of its parameter, for writing; an error if it is none."""
    if site.computed:
        raise ComputedWeightError(owner, site.name)
    return site.slot.read()
