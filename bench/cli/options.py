"""Options that several verbs take, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.model import outside


def _made_known(files: list[Path]) -> list[Path]:
    """Contenders of files are known by name from here on."""
    if files:
        outside.register(files)
    return files


ProfileOption = Annotated[
    str | None, typer.Option("--profile", "-p", help="Profile of bench.toml; default: quick, or the verb's own.")
]
AxisOption = Annotated[
    list[str], typer.Option("--axis", "-a", metavar="NAME=V,...", help="Replace an axis in every grid of the profile.")
]
ClockOption = Annotated[
    list[str], typer.Option("--clock", "-k", help="graph, eager, prepare or work; default: the profile's.")
]
ContenderOption = Annotated[list[str], typer.Option("--contender", "-c", help="Name or glob pattern; may repeat.")]
ContenderFileOption = Annotated[
    list[Path],
    typer.Option(
        "--contender-file",
        metavar="FILE",
        callback=_made_known,
        help="Measure the contenders of this Python file too: docs/how-to/add-a-contender.md; may repeat.",
    ),
]
SglangOption = Annotated[
    list[Path],
    typer.Option(
        "--sglang",
        metavar="FOLDER_OR_WHEEL",
        help="Measure SGLang's contenders of this version beside the installed one; may repeat.",
    ),
]
SubjectOption = Annotated[
    list[str],
    typer.Option(
        "--subject",
        metavar="NAME",
        help="Judge this contender, a name or glob pattern, instead of bench.toml's; may repeat.",
    ),
]
SglangLineOption = Annotated[
    str | None,
    typer.Option(
        "--sglang",
        metavar="V,V,...",
        help="SGLang's own kernels instead of ours: versions or wheels joined by commas, or FIRST..LAST.",
    ),
]
SglangCheckoutOption = Annotated[
    Path | None,
    typer.Option("--sglang-checkout", metavar="FOLDER", help="The same of the commits of a git checkout of SGLang."),
]
AcceptedOption = Annotated[
    Path | None,
    typer.Option("--accepted", metavar="FILE", help="Accepted slowdowns: docs/how-to/gate.md; default: accepted.toml."),
]
CaseOption = Annotated[
    list[str], typer.Option("--case", metavar="NAME=V,...", help="Only cases with these values; may repeat.")
]
ConfigOption = Annotated[Path, typer.Option("--config", help="Configuration file.")]
RoundsOption = Annotated[int | None, typer.Option("--rounds", min=1, help="Re-layouts in a process.")]
ProcessesOption = Annotated[
    int | None, typer.Option("--processes", min=1, help="Fresh processes, each with its own rounds.")
]
SeedOption = Annotated[int | None, typer.Option("--seed", min=1, help="Of layouts and order; default: random.")]
FormatOption = Annotated[
    list[str],
    typer.Option(
        "--format",
        "-f",
        metavar="NAME[=FILE]",
        help="table, markdown, json, junit, bencher or github; to standard output or a file; may repeat.",
    ),
]
FilesArgument = Annotated[
    list[Path], typer.Argument(help="Results, records of pairs, reports of the gate, folders of a history.")
]
CommitsOption = Annotated[
    str, typer.Option("--commits", metavar="A..B", help="After A up to B along first parents; or names, with commas.")
]
MaybeCommitsOption = Annotated[
    str | None,
    typer.Option("--commits", metavar="A..B", help="The same; not needed with --sglang, all of which it is."),
]
LineOption = Annotated[
    str | None,
    typer.Option("--commits", metavar="A..B", help="This line; default: all that is stored."),
]
GpuOption = Annotated[str | None, typer.Option("--gpu", help="Part of a GPU's name, if the history has several.")]
GpusOption = Annotated[
    str | None,
    typer.Option("--gpus", metavar="N,N,...", help="Measure on these GPUs of this host side by side, or on `all`."),
]
OneAtATimeOption = Annotated[
    bool, typer.Option("--one-at-a-time", help="With --gpus: only one of them measures at any moment.")
]
RayOption = Annotated[
    str | None,
    typer.Option("--ray", metavar="ADDRESS", help="Measure on every GPU of a Ray cluster, or `local`; the extra ray."),
]
WideOption = Annotated[bool, typer.Option("--wide", help="Every column, however long the lines become.")]
RowsFormatOption = Annotated[
    str, typer.Option("--format", "-f", metavar="NAME", help="table, markdown, csv or json (a list of objects).")
]
