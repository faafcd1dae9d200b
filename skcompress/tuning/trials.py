"""What the trials of a search found, as rows that print as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from tabulate import tabulate

from ..protocols import Objective
from .measuring import Measurement


@dataclass(frozen=True)
class Row:
    """One finished trial.

    number : of the trial in its study
    params : what was suggested, by the names that Optuna shows
    found : what its model was measured to be
    excess : by how much each constraint is missed; not above 0 where it is met
    seconds : of the whole trial; None where the study does not say
    contended : names of what was timed while other trials ran; tables show it with a ~
    """

    number: int
    params: Mapping[str, Any]
    found: Measurement
    excess: tuple[float, ...] = ()
    seconds: float | None = None
    contended: tuple[str, ...] = ()

    @property
    def feasible(self) -> bool:
        """Whether all constraints are met."""
        return all(value <= 0 for value in self.excess)

    def to_dict(self) -> dict[str, Any]:
        """Give plain data: the trial's number, what was measured, and the parameters."""
        return {
            "trial": self.number,
            **vars(self.found),
            **{f"{name}_contended": True for name in self.contended},
            "seconds": self.seconds,
            "feasible": self.feasible,
            "params": dict(self.params),
        }


@dataclass(frozen=True, repr=False)
class TrialTable(Sequence[Row]):
    """Rows to iterate over, to `print`, or to take as `to_pandas()`.

    dense : what the uncompressed model was measured to be
    objectives : what was measured, by name
    """

    trials: tuple[Row, ...]
    dense: Measurement
    objectives: Mapping[str, Objective] = field(default_factory=dict)

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
            (name, objective)
            for name, objective in self.objectives.items()
            if any(getattr(row.found, name) is not None for row in self)
        ]
        params = sorted({name for row in self for name in row.params})
        lines = []
        for row in (Row(-1, {}, self.dense), *self):
            numbers = [
                ("~" if name in row.contended else "") + _shown(objective, getattr(row.found, name))
                for name, objective in measured
            ]
            given = [_param(row.params[n]) if n in row.params else "" for n in params]
            lines.append(["dense" if row.number < 0 else str(row.number), *numbers, *given])
        return tabulate(
            lines, headers=["trial", *(one.heading(name) for name, one in measured), *params],
            tablefmt=style, colalign=["right"] * (1 + len(measured)) + ["left"] * len(params),
            disable_numparse=True,
        )  # fmt: skip

    def __str__(self) -> str:
        return self._tabulate("simple")

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self._tabulate("html")


def _shown(objective: Objective, value: Any) -> str:
    if value is None:
        return ""
    if objective.counted:
        return f"{value:,}"
    return f"{objective.scale * value:.{3 if objective.timed else 5}g}"


def _param(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
