"""Which weights of a model qualify, and why the others do not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import isfinite

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from .errors import ModelTypeError, NoLayerError, SelectionError
from .factorized import Factorized, LayerKind, Slot, kind_of
from .protocols import Regularizer

Pattern = str | type
Patterns = Pattern | Iterable[Pattern] | None


@dataclass
class Site:
    """One weight to work on, with every layer that uses it.

    name : of the layer, plus the slot's name where a layer has several weights
    users : (module name, slot name) of each layer that shares the weight, this one first
    """

    name: str
    kind: str
    slot: Slot
    users: list[tuple[str, str]]
    modules: list[nn.Module]


@dataclass(frozen=True)
class Left:
    """A module with parameters that stays as it is."""

    name: str
    kind: str
    shape: tuple[int, ...]
    size: int
    reason: str


@dataclass
class Selection:
    """What `select` found; `order` names everything in the order of the model."""

    sites: list[Site] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    order: list[str] = field(default_factory=list)


def check_model(owner: str, model: object) -> nn.Module:
    """Refuse what is not a module instance, as an error of `owner`."""
    if not isinstance(model, nn.Module):
        raise ModelTypeError(owner, model)
    return model


def display_name(name: str) -> str:
    """Name of a module for people; the root module has none of its own."""
    return name or "(model)"


def join(module: str, slot: str) -> str:
    """Name of one weight of a module."""
    return ".".join(part for part in (module, slot) if part) or display_name("")


def as_patterns(patterns: Patterns) -> tuple[Pattern, ...]:
    """List patterns given alone or in a collection; None gives none."""
    if patterns is None:
        return ()
    return (patterns,) if isinstance(patterns, str | type) else tuple(patterns)


def matches(pattern: Pattern, names: Iterable[str], modules: Iterable[nn.Module] = ()) -> bool:
    """Whether a name, a container's name, a glob or a module type hits one of these."""
    if isinstance(pattern, type):
        return any(isinstance(module, pattern) for module in modules)
    return any(fnmatchcase(n, pattern) or n.startswith(f"{pattern}.") for n in names)


def check_patterns(parameter: str, patterns: Patterns, model: nn.Module) -> None:
    """Refuse a pattern that matches no module and no weight of `model`."""
    patterns = as_patterns(patterns)
    names = [join(n, "") for n, _ in model.named_modules(remove_duplicate=False)]
    weights = [n for n, _ in model.named_parameters(remove_duplicate=False)]
    weights += [s.name for s in select(model).sites] if patterns else []
    for pattern in patterns:
        if not matches(pattern, names + weights, model.modules()):
            raise SelectionError(parameter, pattern, [n for n in names if n != display_name("")])


def select(model: nn.Module, layers: Patterns = None, exclude: Patterns = ()) -> Selection:
    """Find the weights to work on.

    layers : names, glob patterns or module types to keep to; None for every layer.
        A container's name stands for what is inside it.
    exclude : the same, for what to leave alone
    """
    wanted, unwanted = as_patterns(layers), as_patterns(exclude)
    aliases = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        aliases[id(module)].append(join(name, ""))

    found = Selection()
    for name, module, kind in _layers(model):
        if kind is None:
            found.left.extend(_unknown(name, module))
            found.order.append(join(name, ""))
            continue
        reason = _refusal(module, kind)
        slots = [] if reason else kind.slots(module)
        if reason:
            found.order.append(join(name, ""))
            found.left.append(_left(name, module, reason))
        for slot in slots:
            site_name = join(name, slot.name)
            found.order.append(site_name)
            names = [join(a, slot.name) if slot.name else a for a in aliases[id(module)]]
            names += aliases[id(module)]
            site = Site(site_name, _type_name(module), slot, [(name, slot.name)], [module])
            if layers is not None and not any(matches(p, names, [module]) for p in wanted):
                found.left.append(_left_site(site, "not among layers"))
            elif any(matches(p, names, [module]) for p in unwanted):
                found.left.append(_left_site(site, "in exclude"))
            else:
                found.sites.append(site)
    return _join_ties(model, found)


def require_sites(owner: str, selection: Selection) -> None:
    """Refuse a model in which nothing is left to work on."""
    if not selection.sites:
        raise NoLayerError(owner, [(left.name, left.reason) for left in selection.left])


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module, LayerKind | None]]:
    """Every module that owns parameters, once; what is inside a known layer is its own."""
    inside: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in inside:
            continue
        kind = None if isinstance(module, Factorized) else kind_of(module)
        if kind is not None or isinstance(module, Factorized):
            inside.update(id(m) for m in module.modules())
        if kind is not None or isinstance(module, Factorized) or module._parameters:
            yield name, module, kind


def _type_name(module: nn.Module) -> str:
    return parametrize.type_before_parametrizations(module).__name__


def _left(name: str, module: nn.Module, reason: str) -> Left:
    parameters = [p for p in module.parameters() if not isinstance(p, UninitializedParameter)]
    largest = max(parameters, key=lambda p: (p.dim(), p.numel()), default=None)
    shape = () if largest is None else tuple(largest.shape)
    size = sum(p.numel() for p in parameters)
    return Left(display_name(name), _type_name(module), shape, size, reason)


def _left_site(site: Site, reason: str) -> Left:
    return Left(site.name, site.kind, flat_shape(site.slot.shape), site.slot.size, reason)


def flat_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of a slot without its axis of groups, where there is only one."""
    return tuple(shape[1:]) if shape[0] == 1 else tuple(shape)


def _unknown(name: str, module: nn.Module) -> Iterator[Left]:
    """Say why the parameters of a module that is no known layer stay."""
    own = {n: p for n, p in module._parameters.items() if p is not None}
    if isinstance(module, Factorized):
        yield _left(name, module, "already factorised")
    elif isinstance(module, nn.Bilinear):
        yield _left(name, module, "a form in two inputs: no factors that are plain layers")
    elif any(isinstance(p, UninitializedParameter) for p in own.values()):
        yield _left(name, module, "not initialised: run one batch through the model first")
    elif own and all(p.dim() < 2 for p in own.values()):
        yield _bare(name, module, own, "vectors only: nothing to factorise")
    elif own:
        listed = ", ".join(f"{n} {tuple(p.shape)}" for n, p in own.items() if p.dim() > 1)
        reason = f"parameters used by its own forward, which is not a known layer's: {listed}"
        yield _bare(name, module, own, reason)


def _bare(name: str, module: nn.Module, own: dict[str, nn.Parameter], reason: str) -> Left:
    largest = max(own.values(), key=lambda p: (p.dim(), p.numel()))
    size = sum(p.numel() for p in own.values())
    return Left(display_name(name), _type_name(module), tuple(largest.shape), size, reason)


def _refusal(module: nn.Module, kind: LayerKind) -> str | None:
    parameters = list(module.parameters())
    if any(isinstance(p, UninitializedParameter) for p in parameters):
        return "not initialised: run one batch through the model first"
    if any(not p.dtype.is_floating_point for p in parameters):
        dtype = next(p.dtype for p in parameters if not p.dtype.is_floating_point)
        return f"weights of {dtype}: only real floating-point weights can be factorised"
    if any(p.numel() == 0 for p in parameters):
        return "an empty weight"
    return kind.refusal(module)


def _join_ties(model: nn.Module, found: Selection) -> Selection:
    """Make one site of the layers that share a weight, or leave all of them."""
    owners: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[id(parameter)].append(display_name(name))
    by_weight: dict[tuple[int, int | None], list[Site]] = defaultdict(list)
    for site in found.sites:
        by_weight[id(site.slot.parameters[0]), site.slot.part].append(site)

    joined = Selection(left=list(found.left), order=found.order)
    for sites in by_weight.values():
        n_owners = max(len(owners[id(p)]) for s in sites for p in s.slot.parameters)
        reason = _tie_refusal(sites, n_owners, owners)
        if reason is not None:
            joined.left.extend(_left_site(site, reason) for site in sites)
            continue
        first = sites[0]
        first.users = [user for site in sites for user in site.users]
        first.modules = [module for site in sites for module in site.modules]
        joined.sites.append(first)
    return joined


def _tie_refusal(
    sites: Sequence[Site], n_owners: int, owners: dict[int, list[str]]
) -> str | None:
    if n_owners == 1:
        return None
    names = {n for s in sites for p in s.slot.parameters for n in owners[id(p)]}
    shared = f"shares its weight among {', '.join(sorted(names))}"
    if len(sites) < n_owners:
        return f"{shared}, and not all of them can be compressed"
    if not all(s.slot.tieable and len(s.slot.parameters) == 1 for s in sites) or any(
        parametrize.is_parametrized(m) for s in sites for m in s.modules
    ):
        return f"{shared}, which hold it in different ways"
    if len({s.slot.shape for s in sites}) > 1:
        return f"{shared}, which read it as different shapes"
    return None


def weighted_penalty(regularizer: Regularizer, model: nn.Module) -> Tensor:
    """Strength times the sum of a regularizer's penalties over a model's weights.

    Every weight that compressors would work on counts once, each group of a grouped
    layer for itself; frozen weights do not count.
    """
    owner = type(regularizer).__name__
    strength = float(regularizer.weight)
    if not (isfinite(strength) and strength >= 0):
        raise ValueError(
            f"weight of {owner} must be a finite number >= 0; got {regularizer.weight!r}"
        )
    selection = select(check_model(owner, model))
    require_sites(owner, selection)
    penalties = [
        regularizer.penalty(group)
        for site in selection.sites
        if site.slot.requires_grad
        for group in site.slot.read()
    ]
    if not penalties:
        return torch.zeros(())
    return strength * torch.stack(penalties).sum()
