"""Options that several verbs of the gate take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ProfileOption = Annotated[str | None, typer.Option("--profile", "-p", help="Profile; default: the gate's.")]
AxisOption = Annotated[list[str], typer.Option("--axis", "-a", metavar="NAME=V,...", help="Replace an axis.")]
ClockOption = Annotated[list[str], typer.Option("--clock", "-k", help="graph, eager or work; default: the gate's.")]
ContenderOption = Annotated[list[str], typer.Option("--contender", "-c", help="Name or pattern; may repeat.")]
CaseOption = Annotated[list[str], typer.Option("--case", metavar="NAME=V,...", help="Only cases with these values.")]
ConfigOption = Annotated[Path, typer.Option("--config", help="Configuration file.")]
FormatOption = Annotated[
    list[str],
    typer.Option(
        "--format",
        "-f",
        metavar="NAME[=FILE]",
        help="table, markdown, json, junit, bencher, github or google; to standard output or a file; may repeat.",
    ),
]
