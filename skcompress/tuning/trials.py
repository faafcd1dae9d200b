"""What the trials of a search found, as rows that print as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, overload

from tabulate import tabulate

from .objectives import Measurement

_HEADERS = {"flops": "FLOPs", "n_parameters": "parameters", "latency": "ms"}


@dataclass(frozen=True)
class Row:
    """One finished trial.

    number : of the trial in its study
    params : what was suggested, by the names that Optuna shows
    found : what its model was measured to be
    excess : by how much each constraint is missed; not above 0 where it is met
    seconds : of the whole trial; None where the study does not say
    contended : whether other trials ran while latency was measured; tables show it with a ~
    """

    number: int
    params: Mapping[str, Any]
    found: Measurement
    excess: tuple[float, ...] = ()
    seconds: float | None = None
    contended: bool = False

    @property
    def feasible(self) -> bool:
        """Whether all constraints are met."""
        return all(value <= 0 for value in self.excess)

    def to_dict(self) -> dict[str, Any]:
        """Give plain data: the trial's number, what was measured, and the parameters."""
        return {
            "trial": self.number,
            **asdict(self.found),
            "latency_contended": self.contended,
            "seconds": self.seconds,
            "feasible": self.feasible,
            "params": dict(self.params),
        }


@dataclass(frozen=True, repr=False)
class TrialTable(Sequence[Row]):
    """Rows to iterate over, to `print`, or to take as `to_pandas()`.

    dense : what the uncompressed model was measured to be
    """

    trials: tuple[Row, ...]
    dense: Measurement | None = field(default=None)

    def __len__(self) -> int:
        return len(self.trials)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.trials)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        return self.trials[index]

    def rows(self) -> list[dict[str, Any]]:
        """One dict per trial, values unformatted, parameters among the others."""
        plain = [row.to_dict() for row in self]
        return [row | row.pop("params") for row in plain]

    def to_pandas(self) -> Any:
        """Give the rows as a `pandas.DataFrame`; needs pandas."""
        import pandas

        return pandas.DataFrame(self.rows())

    def _tabulate(self, style: str) -> str:
        measured = [
            name
            for name in ("score", "n_parameters", "flops", "bytes", "latency")
            if any(getattr(row.found, name) is not None for row in self)
        ]
        names = sorted({name for row in self for name in row.params})
        lines = [_cells("dense", self.dense, measured, {}, names)] if self.dense else []
        lines += [
            _cells(str(r.number), r.found, measured, r.params, names, contended=r.contended)
            for r in self
        ]
        headers = ["trial", *(_HEADERS.get(name, name) for name in measured), *names]
        align = ["right"] * (1 + len(measured)) + ["left"] * len(names)
        return tabulate(
            lines, headers=headers, tablefmt=style, colalign=align if lines else None,
            disable_numparse=True,
        )  # fmt: skip

    def __str__(self) -> str:
        return self._tabulate("simple")

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self._tabulate("html")


def _cells(
    label: str,
    found: Measurement,
    measured: Sequence[str],
    params: Mapping[str, Any],
    names: Sequence[str],
    *,
    contended: bool = False,
) -> list[str]:
    values = [_shown(name, getattr(found, name), contended=contended) for name in measured]
    return [label, *values, *(_param(params[n]) if n in params else "" for n in names)]


def _shown(name: str, value: Any, *, contended: bool) -> str:
    if value is None:
        return ""
    if name == "latency":
        return f"{'~' if contended else ''}{1e3 * value:.3g}"
    return f"{value:.5g}" if name == "score" else f"{value:,}"


def _param(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
