"""Results of posttraining.py and pruning.py as markdown: means and spread over the draws."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from tabulate import tabulate

Row = Mapping[str, Any]

# Points lost without fine-tuning, by kind of network and share of the parameters kept: as
# published, and what a first trial of the sequential reconstruction with 512 images gave.
ELSEWHERE: dict[str, dict[str, dict[float, str]]] = {
    "resnet20": {
        "ALDS (Liebenwein et al. 2021), published": {
            0.7: "lost 3.4", 0.5: "lost 25.2", 0.3: "lost 62.7 (31 % kept)",
        },
        "first trial, sequential, 512 images": {
            0.7: "lost 0.5", 0.5: "lost 1.9", 0.3: "lost 10.1",
        },
    }
}  # fmt: skip


def tables(
    rows: Sequence[Row],
    methods: Mapping[str, Mapping[str, Any]],
    elsewhere: Mapping[str, Mapping[str, Mapping[float, str]]] | None = None,
    column: str = "{keep:.0%} kept",
) -> str:
    """One table for each network and size of the calibration draw, methods downwards.

    elsewhere : more lines by kind of network, as `ELSEWHERE`
    column : what is written above one, of the share kept (keep) and the share gone (gone)
    """
    networks: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        networks[tuple(row[name] for name in ("network", "weights", "test"))].append(row)
    texts = []
    for found in networks.values():
        dense = next(row for row in found if row["settings"] is None)
        more = (elsewhere or {}).get(dense["kind"], {})
        draws = {_draw(row) for row in found if row["inputs"]}
        for n, most in sorted(draws) or [(0, 0)]:
            own = [row for row in found if _draw(row) in ((0, 0), (n, most))]
            drawn = f"{n} calibration inputs" + (f", {most} positions of a batch" if most else "")
            texts.append(_table(dense, own, drawn, methods, more, column))
    return "\n\n".join(texts)


def _draw(row: Row) -> tuple[int, int]:
    """How many calibration inputs a result is of, and the limit on positions, 0 for none."""
    return row["inputs"], row.get("positions") or 0


def _table(
    dense: Row,
    rows: Sequence[Row],
    drawn: str,
    methods: Mapping[str, Mapping[str, Any]],
    elsewhere: Mapping[str, Mapping[float, str]],
    column: str,
) -> str:
    test = "all" if dense["test"] is None else dense["test"]
    title = (
        f"{dense['network']}: {dense['parameters_in']:,} parameters, {dense['quality']:.2f} "
        f"({dense['unit']}, {test} test inputs) dense; {drawn}"
    )
    compressed = [row for row in rows if row["settings"] is not None]
    keeps = sorted({row["keep"] for row in compressed}, reverse=True)
    lines = []
    for name, settings in methods.items():
        own = [row for row in compressed if row["settings"] == settings]
        if own:
            cells = [cell(dense, [r for r in own if r["keep"] == keep]) for keep in keeps]
            fits = [row for row in own if "fit_s" in row]
            times = [_seconds([r for r in fits if r["first"] == first]) for first in (True, False)]
            lines.append([name, *cells, *times])
    for name, lost in elsewhere.items():
        lines.append([name, *(lost.get(keep, "") for keep in keeps), "", ""])
    header = [
        "",
        *(column.format(keep=keep, gone=1 - keep) for keep in keeps),
        "first fit, s",
        "next fit, s",
    ]
    align = ["left", *("right" for _ in header[1:])]
    return f"{title}\n\n" + tabulate(
        lines, header, tablefmt="github", colalign=align, disable_numparse=True
    )


def cell(dense: Row, rows: Sequence[Row]) -> str:
    """Quality, and in brackets what is lost of the dense network's."""
    if not rows:
        return ""
    if any(row["quality"] is None for row in rows):
        return "cannot be reached"
    sign = 1 if dense["better"] == "higher" else -1
    lost = sign * (dense["quality"] - mean(row["quality"] for row in rows))
    values = [row["quality"] for row in rows]
    spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
    return f"{mean(values):.2f}{spread} (lost {lost:.2f})"


def _seconds(rows: Sequence[Row]) -> str:
    """Mean time of fit and transform."""
    return f"{mean(row['fit_s'] + row['transform_s'] for row in rows):.1f}" if rows else ""
