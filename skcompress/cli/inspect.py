"""`skcompress inspect`: how fast singular values fall, and what ranks would keep."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Annotated, Any

import typer
from tabulate import tabulate

from ..checkpoint.streaming import checkpoint_curves
from ..checkpoint.streaming_plan import Work
from ..compressors.base import FactorizingCompressor
from ..network.weights import Site
from ..plan import sizes
from ..protocols import Curve
from .inputs import compressor_of, factory, is_path, loaded
from .options import AsJson, Device, Exclude, Layers, Method, Model, Quiet, Source

# Shares of a weight's parameters for which the table says what is kept.
SHARES = (0.1, 0.2, 0.3, 0.5, 0.7)


def inspect(
    source: Source,
    method: Method = "svd",
    model: Model = None,
    layers: Layers = None,
    exclude: Exclude = None,
    device: Device = None,
    plot: Annotated[
        Path | None, typer.Option(help="File for a picture of the spectra, such as spectra.png.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show what compressing each weight of SOURCE would keep.

    Columns are shares of a weight's parameters; below them stands what is kept of its energy (its
    squared norm), and the rank.

    \b
    Examples:
      skcompress inspect ./llama --layers '*.mlp.*'
      skcompress inspect model.safetensors --plot spectra.png
      skcompress inspect nets:build --json
    """
    compressor = compressor_of(
        method, (), device=device, layers=layers or None, exclude=tuple(exclude or ())
    )
    found = list(_curves(source, compressor, model, verbose=not quiet))
    rows = [_row(site, curves) for site, curves in found]
    if plot is not None:
        _draw(found, plot)
    if as_json:
        typer.echo(json.dumps({"weights": rows}))
        return
    header = ["weight", "shape", "full rank", *(f"{share:.0%}" for share in SHARES)]
    lines = [
        [row["name"], sizes(tuple(row["shape"])), row["full_rank"], *map(_cell, row["kept"])]
        for row in rows
    ]
    typer.echo(tabulate(lines, header, disable_numparse=True))


def _curves(
    source: str, compressor: FactorizingCompressor, model: str | None, *, verbose: bool
) -> Iterator[tuple[Site, list[Curve]]]:
    architecture = factory(model, "--model")
    if is_path(source):
        yield from checkpoint_curves(source, compressor, model=architecture, verbose=verbose)
        return
    network = loaded(source, None)
    work = Work.of(compressor, network)
    for site in work.selection.sites:
        yield site, work.curves(network, site.name)


def _row(site: Site, curves: list[Curve]) -> dict[str, Any]:
    dense = prod(site.slot.shape)
    kept = [_best(curves, share * dense) for share in SHARES]
    return {
        "name": site.name,
        "shape": list(site.slot.shape[1:]),
        "groups": site.slot.shape[0],
        "full_rank": sizes(curves[0].full_rank) if curves else "",
        "kept": [{"share": s, **k} if k else None for s, k in zip(SHARES, kept, strict=True)],
    }


def _best(curves: list[Curve], budget: float) -> dict[str, Any] | None:
    """Of all that costs no more, what loses least."""
    options = [
        (float(curve.errors[i]) / (curve.total or 1.0), curve.scheme, curve.rank_at(i))
        for curve in curves
        for i in range(len(curve.costs))
        if curve.costs[i] <= budget
    ]
    if not options:
        return None
    lost, scheme, rank = min(options, key=lambda option: option[0])
    return {"energy": 1.0 - lost, "scheme": scheme, "rank": rank}


def _cell(kept: dict[str, Any] | None) -> str:
    return "-" if kept is None else f"{kept['energy']:.1%} ({sizes(kept['rank'])})"


def _draw(found: list[tuple[Site, list[Curve]]], path: Path) -> None:
    from ..plotting import SpectrumDisplay

    spectra = {s.name: c[0].spectra[0] for s, c in found if c and c[0].spectra}
    if not spectra:
        raise typer.BadParameter("no weight has singular values", param_hint="--plot")
    SpectrumDisplay(spectra={"weights": spectra}).plot().figure_.savefig(path, bbox_inches="tight")
