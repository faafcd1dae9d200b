"""`skcompress plugins`: what is installed, and what of it works."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

import typer
from tabulate import tabulate

from .. import registry
from ..errors import SkcompressError
from .options import AsJson


def plugins(
    kind: Annotated[
        str | None, typer.Argument(help="Such as decompositions; all if missing.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List installed plugins, with the package that each comes from.

    Ends with 1 where one of them is broken.

    \b
    Examples:
      skcompress plugins
      skcompress plugins decompositions --json
    """
    if kind is not None:
        registry.names(kind)  # refuses what is no kind
    rows = [
        _row(name, point)
        for name in ([kind] if kind is not None else registry.KINDS)
        for point in sorted(entry_points(group=f"skcompress.{name}"), key=lambda p: p.name)
    ]
    if as_json:
        typer.echo(json.dumps({"plugins": rows}))
    else:
        lines = [
            [r["kind"], r["name"], f"{r['package']} {r['version']}", r["error"] or "ok"]
            for r in rows
        ]
        typer.echo(tabulate(lines, ["kind", "name", "package", "state"], disable_numparse=True))
    if any(row["error"] for row in rows):
        raise typer.Exit(1)


def _row(kind: str, point: EntryPoint) -> dict[str, Any]:
    error = None
    try:
        registry.resolve(kind, point.name)
    except SkcompressError as cause:
        error = f"broken: {cause}"
    return {
        "kind": kind,
        "name": point.name,
        "package": point.dist.name if point.dist else "",
        "version": point.dist.version if point.dist else "",
        "error": error,
    }
