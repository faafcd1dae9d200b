"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[
    str,
    typer.Argument(
        help="A .safetensors file, a folder of transformers, or module:factory, a function that "
        "gives the network."
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        help="module:factory of the network, where SOURCE is a file or folder that does not say."
    ),
]
Method = Annotated[
    str, typer.Option(help="A low-rank compressor or decomposition; `skcompress plugins` lists.")
]
Layers = Annotated[
    list[str] | None, typer.Option(help="Name or glob of what to keep to. May be repeated.")
]
Exclude = Annotated[
    list[str] | None, typer.Option(help="Name or glob of what to leave alone. May be repeated.")
]
Data = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        dir_okay=False,
        help="Unlabelled inputs, .safetensors, .npz or .npy: one tensor, or one for each keyword.",
    ),
]
Setting = Annotated[
    list[str] | None,
    typer.Option("--set", help="Further parameter, NAME=VALUE. May be repeated."),
]
Device = Annotated[str | None, typer.Option(help="Where to compute, such as cuda.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no estimate.")]
