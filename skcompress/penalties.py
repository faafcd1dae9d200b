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

from .errors import (
    ComputedWeightError,
    NonFiniteWeightError,
    ProximalError,
    RegularizerValueError,
)
from .protocols import Regularizer
from .regularizers.sum import SumRegularizer
from .selection import (
    Site,
    as_patterns,
    check_model,
    check_patterns,
    flat_shape,
    require_sites,
    select,
)


@dataclass
class _Met:
    """What a regularizer remembers of a model.

    state : everything that the choice of weights depends on
    """

    state: object = None
    sites: list[Site] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)


def weighted_penalty(regularizer: Regularizer, model: nn.Module) -> Tensor:
    """Strength times the sum of penalties over a model's weights, as a scalar with a graph."""
    model = unwrap(regularizer, model)
    return _total(model, _due(regularizer, model, "penalty"))


def mean_penalty(regularizer: Regularizer, model: nn.Module) -> float:
    """What `weighted_penalty` gives on average, whatever turn it is; counts as no call."""
    model = unwrap(regularizer, model)
    terms = [(t, strength, _meet(t, model).sites) for t, strength in _summands(regularizer)]
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


def add_gradients(regularizer: Regularizer, model: nn.Module, scale: float = 1.0) -> None:
    """Add strength times the gradient of the penalties to `.grad` of the parameters."""
    model = unwrap(regularizer, model)
    for term, strength, sites in _due(regularizer, model, "gradient"):
        # The graphs only lead from stored parameters to the weights that are read from
        # them: views, or what a parametrization computes.
        with torch.enable_grad():
            weights = [site.slot.read() for site in sites]
        _check_finite(sites, weights)
        for site, weight, slope in zip(sites, weights, _slopes(term, weights), strict=True):
            stored = [p for p in site.slot.parameters if p.requires_grad]
            # Not `backward`: that would run the hooks with which DistributedDataParallel
            # and others wait for the gradients of the loss.
            found = torch.autograd.grad(weight, stored, slope, allow_unused=True)
            for parameter, gradient in zip(stored, found, strict=True):
                if gradient is not None:
                    _accumulate(parameter, gradient, strength * scale)


def apply_prox(regularizer: Regularizer, model: nn.Module, step: float) -> None:
    """Replace the weights by their proximal points, `step` times strength away."""
    owner = type(regularizer).__name__
    model = unwrap(regularizer, model)
    if not (isfinite(step) and step >= 0):
        raise RegularizerValueError(f"{owner}.prox_", "step", "a finite number >= 0", step)
    if isinstance(regularizer, SumRegularizer):
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
    for term, strength in _summands(regularizer):
        met = _meet(term, model)
        turn = met.calls[way] % term.every == 0
        met.calls[way] += 1
        if turn and strength > 0 and met.sites:
            yield term, strength * term.every, met.sites


def _summands(regularizer: Regularizer) -> Iterator[tuple[Regularizer, float]]:
    strength = _check_parameters(regularizer)
    if isinstance(regularizer, SumRegularizer):
        for part in regularizer.regularizers:
            for term, share in _summands(part):
                yield term, strength * share
    else:
        yield regularizer, strength


def _check_parameters(term: Regularizer) -> float:
    owner = type(term).__name__
    if not (isinstance(term.weight, Real) and isfinite(term.weight) and term.weight >= 0):
        raise RegularizerValueError(owner, "weight", "a finite number >= 0", term.weight)
    if isinstance(term.every, bool) or not (isinstance(term.every, int) and term.every >= 1):
        raise RegularizerValueError(owner, "every", "an int >= 1", term.every)
    return float(term.weight)


def _meet(term: Regularizer, model: nn.Module) -> _Met:
    """Recall which weights of `model` take part; choose anew where something has changed.

    Choosing walks the whole model in Python, a noticeable part of a fast training step.
    """
    met: _Met = term.__dict__.setdefault("_met", WeakKeyDictionary()).setdefault(model, _Met())
    state = (
        term.layers is None,
        as_patterns(term.layers),
        as_patterns(term.exclude),
        tuple((id(p), p.requires_grad, p.shape) for p in model.parameters()),
    )
    if met.state != state:
        check_patterns("layers", term.layers, model)
        check_patterns("exclude", term.exclude, model)
        selection = select(model, term.layers, term.exclude)
        require_sites(type(term).__name__, selection)
        met.sites = [site for site in selection.sites if site.slot.requires_grad]
        met.state = state
    return met


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


def _slopes(term: Regularizer, weights: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield the gradient of the penalty at each weight (groups, out, in, *kernel)."""
    groups = [_at_least_float32(group) for weight in weights for group in weight.detach()]
    found: Iterator[Tensor] | None = None
    for weight in weights:
        # Inside the loop: what is switched off must not be off for whoever reads this.
        with torch.no_grad(), _full_precision(weight):
            found = found or iter(term.gradients(groups))
            parts = [next(found) for _ in weight]
            slope = torch.stack(parts) if len(parts) > 1 else parts[0][None]
        yield slope.to(weight.dtype)


def _accumulate(parameter: nn.Parameter, gradient: Tensor, factor: float) -> None:
    if parameter.grad is None:
        parameter.grad = torch.empty_like(parameter).copy_(gradient).mul_(factor)
    elif parameter.grad.is_sparse:  # of an Embedding(sparse=True): a penalty is on every row
        parameter.grad = gradient.mul(factor) + parameter.grad
    else:
        parameter.grad.add_(gradient, alpha=factor)


def _stored(owner: str, site: Site) -> Tensor:
    """Give the weight as a view of its parameter, for writing; an error if it is none."""
    weight = site.slot.read()
    first = site.slot.parameters[0]
    if weight.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
        raise ComputedWeightError(owner, site.name)
    return weight
