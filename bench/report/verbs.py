"""`report` of the command line: one page of everything that is known of some files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench import results as store
from bench.history.verbs import ClockOption, GpuOption, LineOption, view
from bench.history.view import History

if TYPE_CHECKING:  # they import matplotlib, or what formats
    from bench.report.page import Picture
    from plots.inputs import Inputs

# An SVG is sharp at any size; past this the page would be slow to open, and the PNG is sharp enough.
LARGEST_SVG_BYTES = 400_000


def report(
    files: Annotated[
        list[Path], typer.Argument(help="Results, records of pairs, reports of the gate, folders of a history.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("report.html"),
    commits: LineOption = None,
    clock: ClockOption = [],
    gpu: GpuOption = None,
) -> None:
    """Write one self-contained HTML page: summary, figures, tables, environment, how each figure was obtained."""
    from bench.gate.judge import judge_pairs
    from bench.report.page import Content, page
    from bench.report.tables import console
    from plots import inputs

    found = inputs.load(files)
    histories = {folder: view(folder, commits, clock, [], [], gpu) for folder in found.histories}
    _refuse_other_gpu(found, histories)
    content = Content(
        files=[(path.name, path.read_bytes()) for path in files if path.is_file()],
        results=[(path.name, results) for path, results in found.results],
        pairs=[(path.name, run) for path, run in found.pairs],
        reports=[(path.name, item) for path, item in found.reports]
        + [(path.name, judge_pairs(run)) for path, run in found.pairs],
        histories=[(folder.name, history) for folder, history in histories.items()],
    )
    content.pictures = _pictures(found, histories)
    store.write_bytes(output, page(content).encode())
    console().print(f"written to {output}")


def _refuse_other_gpu(found: Inputs, histories: dict[Path, History]) -> None:
    """Raises ResultsError if a history is of another GPU model than the results: the page speaks of one."""
    gpus = {str(results.env.identity.get("gpu")): path for path, results in found.results if results.env}
    for folder, history in histories.items():
        for era in history.eras:
            gpu = era.environment.identity.get("gpu")
            if gpu is not None and gpus and gpu not in gpus:
                name, path = next(iter(gpus.items()))
                raise store.ResultsError(f"{folder}: is of {gpu}, {path} of {name}; expected one GPU model")


def _pictures(found: Inputs, histories: dict[Path, History]) -> list[Picture]:
    from bench.report.page import Picture
    from plots import figures

    pictures = []
    with tempfile.TemporaryDirectory(prefix="bench-report-") as folder:
        for name, suffix, content in figures.drawable(found, histories.__getitem__):
            png, svg = figures.draw_one(name, content, Path(folder) / f"{name}{suffix}.png")
            small = svg.stat().st_size <= LARGEST_SVG_BYTES
            data, kind = (svg.read_bytes(), "svg+xml") if small else (png.read_bytes(), "png")
            pictures.append(Picture(f"{name}{suffix}", figures.FIGURES[name].shows, data, kind))
    return pictures


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(report)
