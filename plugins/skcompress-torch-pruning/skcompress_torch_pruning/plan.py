"""What `fit` learnt, as plain data; and the table that people read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from tabulate import tabulate
from torch import nn
from torch_pruning import ops
from torch_pruning.pruner.function import PrunerBox

from skcompress.errors import PlanMismatchError
from skcompress.plan import Step

from .groups import Removal, Resize


@dataclass(frozen=True)
class GroupPlan:
    """What happens to the channels of one group, or to a layer that gives no channels of any.

    name : of the first layer that gives them
    kind : class of that layer
    layers : linear layers and convolutions that give them, this one first
    passing : layers that hand them on one by one, such as batch normalisations
    channels, kept : how many there are, and the numbers of those that stay
    before, after : stored numbers of these layers; they change with the channels that they read too
    reason : why all channels stay; None where some go
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    passing: tuple[str, ...]
    channels: int
    kept: tuple[int, ...]
    before: int
    after: int
    reason: str | None = None


@dataclass(frozen=True)
class LayerSides:
    """Channels of one layer, and which of them go, in numbers of the layer's own.

    kind : class of the layer; outputs, inputs : how many it has
    """

    kind: str
    outputs: int
    inputs: int
    gone_outputs: tuple[int, ...]
    gone_inputs: tuple[int, ...]


@dataclass(frozen=True)
class ChannelPlan:
    """Which channels go. Iterates over `GroupPlan`s, in the order of the model.

    layers : by name, those that lose any
    resized : numbers that modules hold, of heads for one: (module, attribute, before, after)
    """

    groups: tuple[GroupPlan, ...]
    layers: dict[str, LayerSides] = field(default_factory=dict)
    resized: tuple[tuple[str, str, int, int], ...] = ()

    def __iter__(self) -> Iterator[GroupPlan]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, name: str) -> GroupPlan:
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    @property
    def removal(self) -> Removal:
        """What goes of each layer."""
        return {n: (list(s.gone_outputs), list(s.gone_inputs)) for n, s in self.layers.items()}

    @property
    def resizes(self) -> list[tuple[Resize, int]]:
        """Numbers to be set."""
        return [(Resize(module, name, after), 1) for module, name, _, after in self.resized]

    def check(self, model: nn.Module) -> None:
        """Refuse a model whose layers are not those of the plan, naming the first difference."""
        modules = dict(model.named_modules())
        for name, sides in self.layers.items():
            expected = _words(sides.kind, sides.outputs, sides.inputs)
            if name not in modules:
                raise PlanMismatchError(name, "is missing", expected)
            found = _words(*described(modules[name]))
            if found != expected:
                raise PlanMismatchError(name, f"is {found}", expected)
        for module, attribute, before, _ in self.resized:
            held = getattr(modules.get(module), attribute, None)
            if held != before:
                raise PlanMismatchError(module, f"has {attribute}={held!r}", f"{before}")

    def to_dict(self) -> dict[str, Any]:
        """Give plain dicts, lists, strings and numbers, ready for JSON."""
        return _plain(asdict(self))  # type: ignore[no-any-return]

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ChannelPlan:
        """Take back what `to_dict` gave, also after a journey through JSON."""
        groups = tuple(GroupPlan(**_fixed(item)) for item in data["groups"])
        layers = {name: LayerSides(**_fixed(item)) for name, item in data["layers"].items()}
        return cls(groups, layers, tuple(tuple(item) for item in data["resized"]))


def described(layer: nn.Module) -> tuple[str, int, int]:
    """Class of a layer, and how many outputs and inputs it has."""
    remover = PrunerBox.get(ops.module2type(layer))
    if remover is None or ops.module2type(layer) == ops.OPTYPE.MHA:
        return type(layer).__name__, 0, 0
    return (
        type(layer).__name__,
        remover.get_out_channels(layer) or 0,
        remover.get_in_channels(layer) or 0,
    )


def _words(kind: str, outputs: int, inputs: int) -> str:
    return f"a {kind} from {inputs} to {outputs} channels"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _fixed(item: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in item.items()}


@dataclass(frozen=True)
class ChannelReport:
    """The plan as a table: `print` it, look at it in a notebook, or `to_pandas()` it.

    Each layer with parameters is in one row. Totals count the whole model.

    flops : of one forward of the first batch, before and after
    divergence : of the outputs from the original's, on the data: the Kullback-Leibler divergence
        in nats of distributions over classes, the relative squared error of other outputs; None
        where outputs cannot be compared
    steps : what the steps of the fit took
    """

    plan: ChannelPlan
    n_parameters_in: int
    n_parameters_out: int
    flops: tuple[int, int]
    divergence: float | None = None
    steps: tuple[Step, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """One dict per group, values unformatted."""
        return [
            {
                "channels of": group.name,
                "kind": group.kind,
                "shared with": group.layers[1:],
                "kept": len(group.kept),
                "of": group.channels,
                "before": group.before,
                "after": group.after,
                "note": group.reason or "",
            }
            for group in self.plan
        ]

    def to_pandas(self) -> Any:
        """Give the rows as a `pandas.DataFrame`; needs pandas."""
        import pandas

        return pandas.DataFrame(self.rows())

    def _tabulate(self, style: str) -> str:
        rows = [
            [
                row["channels of"],
                row["kind"],
                f"{row['kept']} of {row['of']}" if row["of"] else "-",
                f"{row['before']:,}",
                f"{row['after']:,}",
                "; ".join(filter(None, (_sharing(row["shared with"]), row["note"]))),
            ]
            for row in self.rows()
        ]
        headers = ["channels of", "kind", "kept", "before", "after", "note"]
        align = ["left", "left", "right", "right", "right", "left"]
        return tabulate(rows, headers, tablefmt=style, colalign=align, disable_numparse=True)

    def _sentences(self) -> list[str]:
        kept, whole = (
            sum(f(g) for g in self.plan if g.reason is None)
            for f in (lambda g: len(g.kept), lambda g: g.channels)
        )
        share = self.n_parameters_out / max(self.n_parameters_in, 1)
        work = self.flops[1] / max(self.flops[0], 1)
        total = (
            f"{self.n_parameters_in:,} -> {self.n_parameters_out:,} parameters ({share:.1%} kept); "
            f"{self.flops[0]:,} -> {self.flops[1]:,} FLOPs ({work:.1%} kept); "
            f"{whole:,} -> {kept:,} of the channels that may go"
        )
        if self.divergence is None:
            return [total]
        steps = ", ".join(map(str, self.steps))
        return [total, f"divergence of the outputs on the data: {self.divergence:.4g}", steps]

    def __str__(self) -> str:
        return "\n".join([self._tabulate("simple"), "", *self._sentences()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self._tabulate("html") + "".join(f"<p>{escape(s)}</p>" for s in self._sentences())


def _sharing(layers: tuple[str, ...]) -> str:
    if len(layers) <= 2:
        return f"with {' and '.join(layers)}" if layers else ""
    return f"with {layers[0]}, {layers[1]} and {len(layers) - 2} more"
