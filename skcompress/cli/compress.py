"""`skcompress compress`: a smaller network on disk."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..checkpoint.streaming import compress_checkpoint, estimate_checkpoint
from ..checkpoint.streaming_model import write_model
from .inputs import compressor_of, data_of, factory, is_path, loaded, rank_of
from .options import AsJson, Data, Device, Exclude, Layers, Method, Model, Quiet, Setting, Source


def compress(
    source: Source,
    destination: Annotated[str, typer.Argument(help="The new file, or folder for a folder.")],
    rank: Annotated[
        str, typer.Option(help="Fraction of the parameters to keep; or a whole number; or auto.")
    ] = "0.3",
    method: Method = "svd",
    data: Data = None,
    model: Model = None,
    layers: Layers = None,
    exclude: Exclude = None,
    setting: Setting = None,
    device: Device = None,
    shard_gb: Annotated[float, typer.Option(help="Most GB in one file of a folder.")] = 5.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace DESTINATION.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what an interrupted run has left.")
    ] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Only say how long it takes and how much memory.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compress SOURCE into DESTINATION.

    Without --data, files are worked on one weight at a time, whatever their size; an interrupted
    run goes on where it was. With --data, or for module:factory, the network is in memory.

    \b
    Examples:
      skcompress compress model.safetensors small.safetensors --rank 0.3 --model nets:build
      skcompress compress ./llama ./llama-small --rank 0.5 --exclude lm_head
      skcompress compress nets:build small.safetensors --method tucker --data inputs.npy
      skcompress compress ./llama ./llama-small --set allocation=uniform --estimate
    """
    parameters: dict[str, Any] = {
        "rank": rank_of(rank), "device": device, "verbose": not quiet, "layers": layers or None,
        "exclude": tuple(exclude or ()),
    }  # fmt: skip
    compressor = compressor_of(method, setting or (), **parameters)
    architecture, limit = factory(model, "--model"), int(shard_gb * 1e9)
    if data is not None or not is_path(source):
        if estimate:
            raise typer.BadParameter("is for files without --data", param_hint="--estimate")
        said = _in_memory(source, destination, compressor, architecture, data, overwrite, limit)
    elif estimate:
        ahead = estimate_checkpoint(source, compressor, model=architecture)
        said = {"seconds": ahead.seconds, "memory": ahead.memory, "text": str(ahead)}
    else:
        report = compress_checkpoint(
            source, destination, compressor, model=architecture, max_shard_size=limit,
            overwrite=overwrite, restart=restart, verbose=not quiet,
        )  # fmt: skip
        said = {**report.to_dict(), "text": str(report)}
    text = said.pop("text")
    typer.echo(json.dumps(said) if as_json else text)


def _in_memory(
    source: str,
    destination: str,
    compressor: Any,
    architecture: Callable[[], Any] | None,
    data: Path | None,
    overwrite: bool,
    limit: int,
) -> dict[str, Any]:
    folder = Path(source) if Path(source).is_dir() else None
    if not overwrite and Path(destination).exists():
        raise typer.BadParameter(
            f"{destination!r} exists: --overwrite replaces it", param_hint="DESTINATION"
        )
    inputs = data_of(data)
    original = loaded(source, architecture)
    if compressor.verbose:
        size = sum(p.numel() * p.element_size() for p in original.parameters())
        print(f"{size / 1e9:.2f} GB of parameters in memory", file=sys.stderr)
    small = compressor.fit_transform(original, inputs)
    n_bytes = write_model(
        small, compressor.plan_, Path(destination), companions_of=folder, overwrite=overwrite,
        max_shard_size=limit,
    )  # fmt: skip
    return {
        "destination": destination,
        **compressor.plan_.to_dict(),
        "n_parameters": [compressor.n_parameters_in_, compressor.n_parameters_out_],
        "n_bytes": n_bytes,
        "text": str(compressor.report_),
    }
