"""The verb `comment`: a report of the gate as Markdown for a pull request."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.model import pairs, store, verdict
from bench.model.config import ConfigError
from bench.model.pairs import PAIRS_NAME
from bench.model.records import ResultsError
from bench.model.text import for_log
from bench.model.verdict import REPORT_NAME, Report

EXPECTED = "a report of the gate (bench gate -f json=FILE) or a record of pairs (bench gate -o FILE)"
ADDRESS = re.compile(r"https?://[^\s()<>]+")  # Markdown takes all of it as a link


def comment(
    file: Annotated[Path, typer.Argument(help="A report of the gate, or a record of pairs.")],
    title: Annotated[
        str, typer.Option("--title", help="Title, which tells this gate from others on the same pull request.")
    ] = "gate",
    picture: Annotated[
        str | None, typer.Option("--picture", metavar="URL", help="Address of the picture that `plot gate` draws.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write. Default: standard output.")
    ] = None,
) -> None:
    """Write a gate's report as a Markdown comment: verdict, picture, flagged points. Passed points are folded."""
    from bench.show.gate_markdown import comment as written

    if picture is not None and not ADDRESS.fullmatch(picture):
        raise ConfigError(f"--picture {picture}: expected an address, http://... or https://..., without spaces")
    text = written(_report(file), title, picture)
    if output is None:
        sys.stdout.write(for_log(text))
    else:
        store.write_bytes(output, text.encode())


def _report(file: Path) -> Report:
    name = store.format_of(file, EXPECTED)
    if name == PAIRS_NAME:
        from bench.judge.times import judge_pairs

        return judge_pairs(pairs.read(file))
    if name != REPORT_NAME:
        raise ResultsError(f"{file}: is a {name}; expected {EXPECTED}")
    return verdict.read(file)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(comment)
