"""What `fit` learnt, as plain data; and the table that people read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from tabulate import tabulate

from .protocols import Rank, Stage


@dataclass(frozen=True)
class LayerPlan:
    """What happens to one weight.

    name : of the layer, plus the weight's name where a layer has several
    kind : class of the layer
    shape : of the weight, (out, in, *kernel); groups first where a layer is grouped
    scheme, rank, full_rank : how it is cut up; None where it stays. Of a weight that is pruned,
        the criterion, and no rank
    groups : how many weights of the same rank are stored side by side
    before, after : stored numbers of the weight
    error : predicted norm of what is lost, relative to the weight's; 0 where it stays
    nonzeros : numbers of the weight that are not zero, before and after; None where nothing is
        pruned
    reason : why it stays; None where it is compressed
    shared_with : layers that use the same weight
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    before: int
    after: int
    groups: int = 1
    scheme: str | None = None
    rank: Rank | None = None
    full_rank: Rank | None = None
    error: float = 0.0
    reason: str | None = None
    shared_with: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()
    nonzeros: tuple[int, int] | None = None


@dataclass(frozen=True)
class Zeros:
    """What pruning did to a whole model; pairs are before and after.

    weights : stored numbers in the weights that were pruned, of which zeros are a share. Biases,
        normalisations and weights that stay dense are not among them.
    zeros : of these; nonzeros : of all parameters of the model
    n_bytes : of parameters and buffers, stored densely as they are
    packed : bytes, were pruned weights stored as a bit for each number and the values not zero
    """

    weights: int
    zeros: tuple[int, int]
    nonzeros: tuple[int, int]
    n_bytes: tuple[int, int]
    packed: int

    def __str__(self) -> str:
        share = self.zeros[1] / max(self.weights, 1)
        return (
            f"{share:.2%} zeros in {self.weights:,} weights that count (before: "
            f"{self.zeros[0] / max(self.weights, 1):.2%}); "
            f"{self.nonzeros[0]:,} -> {self.nonzeros[1]:,} nonzeros; "
            f"{self.n_bytes[0]:,} -> {self.n_bytes[1]:,} bytes dense, "
            f"{self.packed:,} with a bit mask and nonzeros only"
        )


@dataclass(frozen=True)
class Step:
    """What one step of a fit took.

    seconds : of wall clock; peak : most bytes held at a time until its end, of the process or of
    the GPU; None where the system does not say
    """

    name: str
    seconds: float
    peak: int | None

    def __str__(self) -> str:
        memory = "" if self.peak is None else f" (peak {self.peak / 2**20:,.0f} MiB)"
        return f"{self.name} {self.seconds:.2f} s{memory}"


@dataclass(frozen=True)
class Plan:
    """One `LayerPlan` per weight, in the order of the model. Iterates over them."""

    layers: tuple[LayerPlan, ...] = field(default_factory=tuple)

    def __iter__(self) -> Iterator[LayerPlan]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> LayerPlan:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Give plain dicts, lists, strings and numbers, ready for JSON."""
        return {"layers": [_plain(asdict(layer)) for layer in self.layers]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Plan:
        """Take back what `to_dict` gave, also after a journey through JSON."""
        layers = []
        for item in data["layers"]:
            values = {name: _hashable(value) for name, value in item.items()}
            values["stages"] = tuple(
                Stage(**{name: _hashable(v) for name, v in stage.items()})
                for stage in item["stages"]
            )
            layers.append(LayerPlan(**values))
        return cls(tuple(layers))

    def __str__(self) -> str:
        lines = [f"{layer.name}: {describe(layer)}" for layer in self.layers]
        return "\n".join(lines)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def sizes(value: Rank | tuple[int, ...] | None) -> str:
    """Write a shape or a rank as people do: 64x3x7x7."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else "x".join(map(str, value))


def describe(layer: LayerPlan) -> str:
    """Say in a few words what happens to a weight."""
    if layer.reason is not None:
        return f"dense: {layer.reason}"
    if layer.nonzeros is not None:
        return f"{layer.scheme}, {layer.nonzeros[1]:,} of {layer.before:,} values kept"
    return f"{layer.scheme}, rank {sizes(layer.rank)} of {sizes(layer.full_rank)}"


_COLUMNS = (
    "layer",
    "kind",
    "shape",
    "scheme",
    "rank",
    "before",
    "after",
    "nonzeros",
    "zeros",
    "error",
    "measured",
    "note",
)
_RIGHT = {"rank", "before", "after", "nonzeros", "zeros", "error", "measured"}


class Report:
    """The plan as a table: `print` it, look at it in a notebook, or `to_pandas()` it.

    Rows count the numbers of one weight each; the totals count the whole model, with
    biases, and everything shared once.

    flops : of one forward before and after; None where they were not counted

    Where data took part there is more. "measured" is the norm of the difference between what
    the layer gives in the compressed network and what it gave, relative to the latter, after
    a batch normalisation that follows; layers before it have their share in it, where the
    predicted "error" is that of the weight by itself.

    steps : what the steps of the fit took
    divergence : of the compressed network's outputs from the original's, on the data: the
        Kullback-Leibler divergence in nats of distributions over classes, the relative squared
        error of other outputs; None without data
    measured : relative errors of outputs by the name of the weight
    zeros : of the whole model, where weights were pruned; "nonzeros" and "zeros" of a row are
        those of its weight afterwards
    folded : normalisations that were multiplied into the layers before them, a row each
    """

    def __init__(
        self,
        plan: Plan,
        n_in: int,
        n_out: int,
        flops: tuple[int, int] | None = None,
        *,
        steps: tuple[Step, ...] = (),
        divergence: float | None = None,
        measured: Mapping[str, float] | None = None,
        zeros: Zeros | None = None,
        folded: tuple[LayerPlan, ...] = (),
    ):
        self.plan = plan
        self.n_parameters_in = n_in
        self.n_parameters_out = n_out
        self.flops = flops
        self.steps = steps
        self.divergence = divergence
        self.measured = dict(measured or {})
        self.zeros = zeros
        self.folded = folded

    def rows(self) -> list[dict[str, Any]]:
        """One dict per weight, values unformatted."""
        return [
            {
                "layer": layer.name,
                "kind": layer.kind,
                "shape": layer.shape,
                "scheme": layer.scheme,
                "rank": layer.rank,
                "full_rank": layer.full_rank,
                "before": layer.before,
                "after": layer.after,
                "nonzeros": None if layer.nonzeros is None else layer.nonzeros[1],
                "zeros": None if layer.nonzeros is None else layer.before - layer.nonzeros[1],
                "error": layer.error,
                "measured": self.measured.get(layer.name),
                "note": layer.reason or _sharing(layer),
            }
            for layer in (*self.plan, *self.folded)
        ]

    def to_pandas(self) -> Any:
        """Give the rows as a `pandas.DataFrame`; needs pandas."""
        import pandas

        return pandas.DataFrame(self.rows())

    def _cells(self) -> list[dict[str, str]]:
        return [
            {
                "layer": row["layer"],
                "kind": row["kind"],
                "shape": sizes(row["shape"]),
                "scheme": row["scheme"] or "-",
                "rank": f"{sizes(row['rank'])} of {sizes(row['full_rank'])}"
                if row["rank"]
                else "-",
                "before": f"{row['before']:,}",
                "after": f"{row['after']:,}",
                "nonzeros": "-" if row["nonzeros"] is None else f"{row['nonzeros']:,}",
                "zeros": "-" if row["zeros"] is None else f"{row['zeros'] / row['before']:.1%}",
                "error": f"{row['error']:.4f}" if row["scheme"] else "-",
                "measured": "-" if row["measured"] is None else f"{row['measured']:.4f}",
                "note": row["note"],
            }
            for row in self.rows()
        ]

    def _total(self) -> str:
        share = self.n_parameters_out / max(self.n_parameters_in, 1)
        n_compressed = sum(layer.reason is None for layer in self.plan)
        flops = "" if self.flops is None else f"; {_flops(*self.flops)}"
        return (
            f"{self.n_parameters_in:,} -> {self.n_parameters_out:,} parameters "
            f"({share:.1%} kept){flops}; {n_compressed} of {len(self.plan)} weights "
            f"{'compressed' if self.zeros is None else 'pruned'}"
        )

    def _fit(self) -> list[str]:
        """Sentences on zeros, and on a fit with data."""
        sentences = [] if self.zeros is None else [str(self.zeros)]
        if self.divergence is not None:
            sentences.append(
                f"divergence of the outputs on the data: {self.divergence:.4g}, "
                f"{_verdict(self.divergence)}"
            )
            sentences.append(", ".join(map(str, self.steps)))
        elif self.zeros is None and self.doubtful:
            sentences.append(doubts(self.doubtful, self.plan))
        return sentences

    @property
    def doubtful(self) -> list[str]:
        """Names of weights of which a fit without data loses so much that networks break by it."""
        return [row.name for row in self.plan if row.rank is not None and row.error > _LARGE]

    def _tabulate(self, style: str) -> str:
        unused = {"measured"} if not self.measured else set()
        # Pruned weights have no ranks and store what they stored, factors no zeros to speak of.
        unused |= {"nonzeros", "zeros"} if self.zeros is None else {"rank", "after"}
        columns = [name for name in _COLUMNS if name not in unused]
        align = ["right" if name in _RIGHT else "left" for name in columns]
        rows = [[row[name] for name in columns] for row in self._cells()]
        return tabulate(
            rows, headers=columns, tablefmt=style, colalign=align, disable_numparse=True
        )

    def __str__(self) -> str:
        return "\n".join([self._tabulate("simple"), "", self._total(), *self._fit()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        sentences = "".join(f"<p>{escape(s)}</p>" for s in (self._total(), *self._fit()))
        return self._tabulate("html") + sentences


# Relative error of a weight; half of them beyond it, without data, destroyed every real network
# that was tried.
_LARGE = 0.3
# Of the outputs of networks that lost less than a point of accuracy, and less than ten.
_LITTLE, _SOME = 0.05, 0.25


def _verdict(divergence: float) -> str:
    """Say what a difference of outputs, in nats or as a relative squared error, has meant."""
    if divergence < _LITTLE:
        return "as of networks that lose little"
    if divergence < _SOME:
        return "expect some loss: check it, or keep more"
    return "expect damage: keep more, or give more inputs of the kind that counts"


def doubts(names: Sequence[str], plan: Plan) -> str:
    """Say that errors predicted without data are of the kind that destroys networks."""
    n = sum(row.rank is not None for row in plan)
    return (
        f"{len(names)} of {n} compressed weights lose more than {_LARGE:.0%} of their norm: "
        "without data, networks with many such weights usually break. Pass a few hundred inputs "
        "as data, keep more, or train with a smoothness penalty first"
    )


def _flops(n_in: int, n_out: int) -> str:
    """Write both counts with the prefix that suits the first: 1.23 G -> 0.61 G FLOPs."""
    power = min((len(str(n_in)) - 1) // 3, 5)
    prefix = " kMGTP"[power].strip()
    digits = 2 if power else 0
    counts = (f"{n / 1000**power:,.{digits}f} {prefix}".strip() for n in (n_in, n_out))
    return f"{' -> '.join(counts)} FLOPs ({n_out / max(n_in, 1):.1%} kept)"


def _sharing(layer: LayerPlan) -> str:
    return f"shared with {', '.join(layer.shared_with)}" if layer.shared_with else ""
