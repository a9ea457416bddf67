"""`python -m bench report`: all content of the given files, as one page."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import ClockOption, FilesArgument, GpuOption, LineOption
from bench.cli.series import views
from bench.model import store
from bench.model.paths import shown


def report(
    files: FilesArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="HTML file to write.")] = Path("report.html"),
    commits: LineOption = None,
    clock: ClockOption = [],
    gpu: GpuOption = None,
) -> None:
    """Write one HTML page that works offline, with charts, filters, and the rounds and origin of each point.

    The files may come from several GPUs, which are shown side by side. --commits, --clock and --gpu select from
    histories.
    """
    from bench.judge.times import judge_pairs
    from bench.show.page.content import Content
    from bench.show.page.render import page
    from bench.show.tables import console
    from plots import inputs

    names = _names(files)
    content = Content(files=[(names[path], path.read_bytes()) for path in files if path.is_file()])
    for path in files:
        found = inputs.load([path])
        content.results += [(names[path], results) for _, results in found.results]
        content.served += [(names[path], served) for _, served in found.served]
        content.pairs += [(names[path], run) for _, run in found.pairs]
        content.reports += [(names[path], item) for _, item in found.reports]
        content.reports += [(names[path], judge_pairs(run)) for _, run in found.pairs]
        for folder in found.histories:
            content.histories += [(names[path], history) for history in views(folder, commits, clock, gpu)]
    if not files:
        inputs.load(files)  # says what is expected
    store.write_bytes(output, page(content).encode())
    size = output.stat().st_size / 1e6
    console().print(f"written to {output} ({size:.1f} MB)")


def _names(files: list[Path]) -> dict[Path, str]:
    """The name of each on the page: a file's name if it is unique, otherwise the path as one would type it."""
    counts = Counter(path.name for path in files)
    return {path: path.name if path.is_file() and counts[path.name] == 1 else shown(path) for path in files}


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(report)
