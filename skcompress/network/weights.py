"""Which weights of a model qualify, and why the others do not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from ..errors import ModelTypeError, NoLayerError, PatternTypeError, SelectionError
from ..layers import LayerKind, Slot, kind_of
from ..layers.reasons import is_opaque, why_left

Pattern = str | type
Patterns = Pattern | Iterable[Pattern] | None


@dataclass
class Site:
    """One weight to work on, with every layer that uses it.

    name : of the layer, plus the slot's name where a layer has several weights
    names : all that patterns may call it by: its own, and those of its layers and parameters
    users : (module name, slot name) of each layer that shares the weight, this one first
    """

    name: str
    names: list[str]
    kind: str
    slot: Slot
    users: list[tuple[str, str]]
    modules: list[nn.Module]

    @property
    def alone(self) -> bool:
        """Whether it is the only weight of its layer, which shares it with no other."""
        return len(self.users) == 1 and self.slot.name == ""

    @property
    def computed(self) -> bool:
        """Whether the weight is no view of its parameter: nothing can be written to it."""
        weight, stored = self.slot.read().detach(), self.slot.parameters[0]
        return weight.untyped_storage().data_ptr() != stored.untyped_storage().data_ptr()


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


def named(pattern: Pattern, sites: Sequence[Site]) -> list[Site]:
    """Weights that a pattern names: by an exact name if there is one, a container, or a glob.

    An exact name, of a layer or a weight, comes first: "l[0]" is one where a module is called so.
    """
    if isinstance(pattern, type):
        return [site for site in sites if any(isinstance(m, pattern) for m in site.modules)]
    rules: tuple[Callable[[str], bool], ...] = (
        lambda name: name == pattern,
        lambda name: name.startswith(f"{pattern}."),
        lambda name: fnmatchcase(name, pattern),
    )
    for rule in rules:
        found = [site for site in sites if any(map(rule, site.names))]
        if found:
            return found
    return []


def check_patterns(parameter: str, patterns: Patterns, model: nn.Module) -> None:
    """Refuse a pattern of `layers`, `exclude` or `rank` that names nothing in `model`.

    What is excluded need not be anything that could be compressed.
    """
    patterns = as_patterns(patterns)
    if not patterns:
        return
    selections = [select(model), select(model, inside_factors=True)]
    names = [join(n, "") for n, _ in model.named_modules(remove_duplicate=False)]
    others = names + [n for n, _ in model.named_parameters(remove_duplicate=False)]
    for pattern in patterns:
        if not isinstance(pattern, str | type):
            raise PatternTypeError(parameter, pattern)
        if any(named(pattern, found.sites) for found in selections):
            continue
        left = [left for left in selections[0].left if matches(pattern, [left.name])]
        if parameter == "exclude" and matches(pattern, others, model.modules()):
            continue
        known = [n for n in names if n != display_name("")]
        raise SelectionError(parameter, pattern, known, left[0].reason if left else None)


def select(
    model: nn.Module,
    layers: Patterns = None,
    exclude: Patterns = (),
    *,
    inside_factors: bool = False,
) -> Selection:
    """Find the weights to work on.

    layers : names, glob patterns or module types to keep to; None for every layer.
        A container's name stands for what is inside it.
    exclude : the same, for what to leave alone
    inside_factors : whether the layers that a low-rank compressor has put in are layers like
        others; else what was factorised stays as it is
    """
    wanted, unwanted = as_patterns(layers), as_patterns(exclude)
    aliases = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        aliases[id(module)].append(name)

    found = Selection()
    wholes: set[int] = set()
    for name, module, kind, reason in _layers(model, inside_factors):
        if kind is None:
            found.order.append(join(name, ""))
            found.left.append(_left(name, module, reason, inside_factors))
            continue
        wholes.add(id(module))
        for slot in kind.slots(module):
            site_name = join(name, slot.name)
            found.order.append(site_name)
            names = _names(module, slot, aliases[id(module)])
            site = Site(site_name, names, _type_name(module), slot, [(name, slot.name)], [module])
            found.sites.append(site)
    kept = found.sites
    if layers is not None:
        kept = _split(found, kept, wanted, keep=True, reason="not among layers")
    found.sites = _split(found, kept, unwanted, keep=False, reason="in exclude")
    return _join_ties(found, _owners(model, wholes))


def _names(module: nn.Module, slot: Slot, aliases: Sequence[str]) -> list[str]:
    """All that patterns may call a weight by."""
    stored = {id(p) for p in slot.parameters}
    parameters = [name for name, p in module.named_parameters() if id(p) in stored]
    parts = dict.fromkeys((slot.name, "", *parameters, *(() if slot.name else ("weight",))))
    return [join(alias, part) for part in parts for alias in aliases]


def _split(
    found: Selection, sites: Sequence[Site], patterns: Sequence[Pattern], *, keep: bool, reason: str
) -> list[Site]:
    """Give the sites that stay; the others are left, for a reason.

    keep : whether those stay that some pattern names, or the others
    """
    chosen = {id(site) for pattern in patterns for site in named(pattern, sites)}
    staying = [site for site in sites if (id(site) in chosen) == keep]
    found.left += [_left_site(s, reason) for s in sites if (id(s) in chosen) != keep]
    return staying


def require_sites(owner: str, selection: Selection) -> None:
    """Refuse a model in which nothing is left to work on."""
    if not selection.sites:
        raise NoLayerError(owner, [(left.name, left.reason) for left in selection.left])


def _layers(
    model: nn.Module, inside_factors: bool
) -> Iterator[tuple[str, nn.Module, LayerKind | None, str]]:
    """Every module that owns parameters, once: its kind, or None and why it is left.

    What is inside a layer that can be compressed belongs to that layer.
    """
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in inside:
            continue
        opaque = is_opaque(module, inside_factors)
        kind = None if opaque else kind_of(module)
        reason = why_left(module, kind, inside_factors)
        if opaque or (kind and not reason):
            inside.update(module.modules())
        if reason:
            yield name, module, None, reason
        elif kind:
            yield name, module, kind, ""


def _owners(model: nn.Module, wholes: set[int]) -> dict[int, dict[int, str]]:
    """By parameter, the layers that hold it, or else the modules: their ids and names.

    wholes : ids of the layers that own what is inside them. A module inside one that is
        used elsewhere too makes two owners of its parameters.
    """
    owners: dict[int, dict[int, str]] = defaultdict(dict)
    whole, prefix = None, "."
    for name, module in model.named_modules(remove_duplicate=False):
        if not name.startswith(prefix):
            whole, prefix = None, "."
        if whole is None and id(module) in wholes:
            whole, prefix = (id(module), display_name(name)), f"{name}." if name else ""
        holder, holder_name = whole or (id(module), display_name(name))
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)].setdefault(holder, holder_name)
    return owners


def _type_name(module: nn.Module) -> str:
    return parametrize.type_before_parametrizations(module).__name__


def _left(name: str, module: nn.Module, reason: str, inside_factors: bool) -> Left:
    held = module.parameters(recurse=is_opaque(module, inside_factors))
    parameters = [p for p in held if not isinstance(p, UninitializedParameter)]
    largest = max(parameters, key=lambda p: (p.dim(), p.numel()), default=None)
    shape = () if largest is None else tuple(largest.shape)
    size = sum(p.numel() for p in parameters)
    return Left(display_name(name), _type_name(module), shape, size, reason)


def _left_site(site: Site, reason: str) -> Left:
    return Left(site.name, site.kind, flat_shape(site.slot.shape), site.slot.size, reason)


def flat_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of a slot without its axis of groups, where there is only one."""
    return tuple(shape[1:]) if shape[0] == 1 else tuple(shape)


def _join_ties(found: Selection, owners: dict[int, dict[int, str]]) -> Selection:
    """Make one site of the layers that share a weight, or leave all of them."""
    by_weight: dict[tuple[int, int | None], list[Site]] = defaultdict(list)
    for site in found.sites:
        by_weight[id(site.slot.parameters[0]), site.slot.part].append(site)

    joined = Selection(left=list(found.left), order=found.order)
    for sites in by_weight.values():
        reason = _tie_refusal(sites, owners)
        if reason is not None:
            joined.left.extend(_left_site(site, reason) for site in sites)
            continue
        first = sites[0]
        first.names = [name for site in sites for name in site.names]
        first.users = [user for site in sites for user in site.users]
        first.modules = [module for site in sites for module in site.modules]
        joined.sites.append(first)
    return joined


def _tie_refusal(sites: Sequence[Site], owners: dict[int, dict[int, str]]) -> str | None:
    holders = [owners[id(p)] for site in sites for p in site.slot.parameters]
    n_owners = max(map(len, holders))
    if n_owners == len(sites) == 1:
        return None
    names = {name for holder in holders for name in holder.values()}
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
