"""Options that several verbs take, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.model import outside


def _made_known(files: list[Path]) -> list[Path]:
    """Register the contenders of these files, so that they can be named."""
    if files:
        outside.register(files)
    return files


ProfileOption = Annotated[
    str | None,
    typer.Option(
        "--profile",
        "-p",
        help="Profile of bench.toml. Default: quick for sweep and list; otherwise bench.toml sets it.",
    ),
]
AxisOption = Annotated[
    list[str],
    typer.Option(
        "--axis",
        "-a",
        metavar="NAME=V,...",
        help="Replace the values of an axis in every grid of the profile; may be repeated.",
    ),
]
ClockOption = Annotated[
    list[str],
    typer.Option(
        "--clock", "-k", help="graph, eager, prepare or work; may be repeated. Default: the profile's clocks."
    ),
]
ContenderOption = Annotated[
    list[str], typer.Option("--contender", "-c", help="Contender, by name or glob pattern; may be repeated.")
]
ContenderFileOption = Annotated[
    list[Path],
    typer.Option(
        "--contender-file",
        metavar="FILE",
        callback=_made_known,
        help="Also measure the contenders in this Python file; may be repeated. See add-a-contender.md in docs/how-to.",
    ),
]
SglangOption = Annotated[
    list[Path],
    typer.Option(
        "--sglang",
        metavar="FOLDER_OR_WHEEL",
        help="Also measure the contenders of this SGLang, beside the installed one; may be repeated.",
    ),
]
SubjectOption = Annotated[
    list[str],
    typer.Option(
        "--subject",
        metavar="NAME",
        help="Judge this contender (name or glob pattern) instead of those in bench.toml; may be repeated.",
    ),
]
SglangLineOption = Annotated[
    str | None,
    typer.Option(
        "--sglang",
        metavar="V,V,...",
        help="Measure SGLang's kernels instead of ours: versions or wheels joined by commas, or FIRST..LAST.",
    ),
]
SglangCheckoutOption = Annotated[
    Path | None,
    typer.Option(
        "--sglang-checkout",
        metavar="FOLDER",
        help="Measure SGLang's kernels at the commits of this git checkout of SGLang.",
    ),
]
AcceptedOption = Annotated[
    Path | None,
    typer.Option(
        "--accepted",
        metavar="FILE",
        help="File of accepted slowdowns. Default: accepted.toml. See docs/how-to/gate.md.",
    ),
]
CaseOption = Annotated[
    list[str],
    typer.Option("--case", metavar="NAME=V,...", help="Select only cases with these values; may be repeated."),
]
ConfigOption = Annotated[Path, typer.Option("--config", help="Configuration file.")]
RoundsOption = Annotated[
    int | None, typer.Option("--rounds", min=1, help="Rounds in each process; each lays out memory anew.")
]
ProcessesOption = Annotated[
    int | None, typer.Option("--processes", min=1, help="Fresh processes, each with its own rounds.")
]
SeedOption = Annotated[
    int | None, typer.Option("--seed", min=1, help="Seed of memory layouts and order. Default: random.")
]
FormatOption = Annotated[
    list[str],
    typer.Option(
        "--format",
        "-f",
        metavar="NAME[=FILE]",
        help="table, markdown, json, junit, bencher or github, to standard output or to FILE; may be repeated.",
    ),
]
FilesArgument = Annotated[
    list[Path], typer.Argument(help="Results files, records of pairs, reports of the gate, or folders of a history.")
]
CommitsOption = Annotated[
    str,
    typer.Option(
        "--commits", metavar="A..B", help="The commits after A up to B along first parents, or names joined by commas."
    ),
]
MaybeCommitsOption = Annotated[
    str | None,
    typer.Option(
        "--commits",
        metavar="A..B",
        help="The commits after A up to B along first parents, or names joined by commas. Default with --sglang: all.",
    ),
]
LineOption = Annotated[
    str | None,
    typer.Option("--commits", metavar="A..B", help="Only these commits of the history. Default: all that are stored."),
]
GpuOption = Annotated[
    str | None, typer.Option("--gpu", help="Part of a GPU's name; needed if the history has several GPUs.")
]
GpusOption = Annotated[
    str | None,
    typer.Option("--gpus", metavar="N,N,...", help="Measure on these GPUs of this host in parallel, or on `all`."),
]
OneAtATimeOption = Annotated[
    bool, typer.Option("--one-at-a-time", help="With --gpus: only one GPU measures at a time.")
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Measure on every GPU of a Ray cluster, or of a `local` one. Needs the extra `ray`.",
    ),
]
WideOption = Annotated[bool, typer.Option("--wide", help="Print every column, however long the lines become.")]
RowsFormatOption = Annotated[
    str,
    typer.Option(
        "--format", "-f", metavar="NAME", help="Output format: table, markdown, csv or json (a list of objects)."
    ),
]
