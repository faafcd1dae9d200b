"""The commands, and how they end: 0 done, 1 failed, 2 called in a wrong way, 130 interrupted."""

from __future__ import annotations

import sys
from importlib.metadata import version

import typer
from sklearn.utils._param_validation import InvalidParameterError

from ..errors import SkcompressError
from .compress import compress
from .inspect import inspect
from .plugins import plugins
from .tune import tune

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Make neural networks small. Results go to stdout, progress to stderr.",
)
for command in (compress, inspect, tune, plugins):
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("skcompress"))
        raise typer.Exit


@app.callback()
def _options(
    shows_version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print it and stop."
    ),
) -> None:
    """Make neural networks small. Results go to stdout, progress to stderr."""


def main() -> None:
    """Run the command that the arguments ask for; ends the process."""
    try:
        app()
    except (SkcompressError, InvalidParameterError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
