"""`skcompress tune`: a search for the best compromise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ..checkpoint.streaming_model import write_model
from ..errors.base import suggestion
from .inputs import compressor_of, data_of, factory, is_path, loaded, named_object
from .options import AsJson, Data, Device, Exclude, Layers, Method, Model, Quiet, Setting, Source


def tune(
    source: Source,
    scoring: Annotated[
        str, typer.Option(help="module:function, (model) -> float, more is better.")
    ],
    out: Annotated[
        str | None, typer.Option(help="Where to write the best; a file, or folder for a folder.")
    ] = None,
    method: Method = "svd",
    space: Annotated[
        list[str] | None,
        typer.Option(help="Name or glob of a parameter to search. May be repeated. [rank]"),
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(help="Such as score, n_parameters, flops. May be repeated. [both first]"),
    ] = None,
    constraint: Annotated[
        list[str] | None, typer.Option(help="Such as 'score >= dense - 0.01'. May be repeated.")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials in all.")] = 30,
    seed: Annotated[int | None, typer.Option(help="For the same search each time.")] = None,
    storage: Annotated[
        str | None, typer.Option(help="URL of a study that goes on, such as sqlite:///study.db.")
    ] = None,
    study: Annotated[str | None, typer.Option(help="Name of the study in --storage.")] = None,
    data: Data = None,
    model: Model = None,
    layers: Layers = None,
    exclude: Exclude = None,
    setting: Setting = None,
    device: Device = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Search for the smallest network that scores best, in memory.

    \b
    Examples:
      skcompress tune nets:build --scoring nets:accuracy --trials 50 --out best.safetensors
      skcompress tune ./bert --scoring nets:accuracy --constraint 'score >= dense - 0.01'
    """
    from ..tuning import CompressionSearch

    if out is not None and Path(out).exists() and not overwrite:
        raise typer.BadParameter(f"{out!r} exists: --overwrite replaces it", param_hint="--out")
    compressor = compressor_of(
        method, setting or (), device=device, layers=layers or None, exclude=tuple(exclude or ())
    )
    searched = space or ["rank"]
    for name in searched:
        if name.isidentifier() and name not in compressor.get_params():
            hint = suggestion(name, sorted(compressor.get_params()))
            raise typer.BadParameter(f"no parameter {name!r}; {hint}", param_hint="--space")
    search = CompressionSearch(
        compressor,
        searched,
        scoring=named_object(scoring, "--scoring"),
        objectives=tuple(objective or ("score", "n_parameters")),
        constraints=tuple(constraint or ()),
        n_trials=trials,
        random_state=seed,
        storage=storage,
        study_name=study,
        verbose=not quiet,
    )
    search.fit(loaded(source, factory(model, "--model")), data_of(data))
    if out is not None:
        folder = Path(source) if is_path(source) and Path(source).is_dir() else None
        plan = search.best_compressor_.plan_
        write_model(search.best_model_, plan, Path(out), companions_of=folder, overwrite=overwrite)
    if not as_json:
        best = ", ".join(f"{name}={value}" for name, value in search.best_params_.items())
        typer.echo(f"{search.pareto_front_}\n\nbest is trial {search.best_trial_.number}: {best}")
        return
    said = {
        "front": [row.to_dict() for row in search.pareto_front_],
        "best": search.best_trial_.to_dict(),
        "out": out,
    }
    typer.echo(json.dumps(said))
