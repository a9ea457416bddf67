"""`python -m bench VERB`: every verb, one file a group. Torch is only imported where a verb needs it."""

from __future__ import annotations

from typing import Annotated

import typer

from bench.cli import accuracy, baseline, entry, gate, history, look, measure, profile, serve
from bench.execute.interleaved import Machine
from bench.model.environment import suite_version

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=__doc__,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (measure, serve, look, gate, baseline, history, profile, accuracy):
    group.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(suite_version())
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Measure LoRA kernels, compare them with SGLang's, and judge changes."""


def main(arguments: list[str] | None = None, machine: Machine | None = None) -> None:
    """Run the command line and end the process. The gate measures with `machine`."""
    entry.run(app, arguments, machine)
