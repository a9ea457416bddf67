"""`show`, `plot`, `report`, `list`, `config` and `doctor` of the command line: the verbs that only look."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from bench.cli.exit_codes import FOUND
from bench.cli.history import view
from bench.cli.measure import plan_of
from bench.cli.options import (
    AxisOption,
    CaseOption,
    ClockOption,
    ConfigOption,
    ContenderOption,
    FilesArgument,
    GpuOption,
    LineOption,
    ProfileOption,
)
from bench.cli.selection import DEFAULT_PROFILE
from bench.judge.history import History
from bench.model import config as configuration
from bench.model import store
from bench.model.config import ConfigError
from bench.model.records import ResultsError, Selection

if TYPE_CHECKING:  # they import matplotlib, or what formats
    from bench.show.page import Picture
    from plots.inputs import Inputs

FIGURES = ("history", "heatmap", "scaling", "roofline", "rounds", "noise", "gate")
# An SVG is sharp at any size; past this the page would be slow to open, and the PNG is sharp enough.
LARGEST_SVG_BYTES = 400_000


def show(file: Annotated[Path, typer.Argument(help="Results file.")]) -> None:
    """The tables of a results file."""
    from bench.show.tables import console, summary

    console().print(summary(store.read(file)))


def plot(
    figure: Annotated[str, typer.Argument(help=f"One of {', '.join(FIGURES)}; or all that the files allow.")],
    files: FilesArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File; of all: what their names begin with.")
    ] = None,
    commits: LineOption = None,
    clock: ClockOption = [],
    gpu: GpuOption = None,
) -> None:
    """Draw a figure, as PNG and SVG. The last three options choose from a history."""
    if figure not in (*FIGURES, "all"):
        raise ConfigError(f"figure {figure!r} is unknown; expected one of {', '.join(FIGURES)} or all")
    from plots import figures, inputs

    single = f"{files[0].stem}-{figure}.png" if figure != "all" else f"{files[0].stem}.png"
    path = output or files[0].with_name(single)
    found = inputs.load(files)
    for written in figures.draw(figure, found, lambda folder: view(folder, commits, clock, [], [], gpu), path):
        sys.stdout.write(f"written to {written}\n")


def report(
    files: FilesArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("report.html"),
    commits: LineOption = None,
    clock: ClockOption = [],
    gpu: GpuOption = None,
) -> None:
    """Write one self-contained HTML page: summary, figures, tables, environment, how each figure was obtained."""
    from bench.judge.times import judge_pairs
    from bench.show.page import Content, page
    from bench.show.tables import console
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
                raise ResultsError(f"{folder}: is of {gpu}, {path} of {name}; expected one GPU model")


def _pictures(found: Inputs, histories: dict[Path, History]) -> list[Picture]:
    from bench.show.page import Picture
    from plots import figures

    pictures = []
    with tempfile.TemporaryDirectory(prefix="bench-report-") as folder:
        for name, suffix, content in figures.drawable(found, histories.__getitem__):
            png, svg = figures.draw_one(name, content, Path(folder) / f"{name}{suffix}.png")
            small = svg.stat().st_size <= LARGEST_SVG_BYTES
            data, kind = (svg.read_bytes(), "svg+xml") if small else (png.read_bytes(), "png")
            pictures.append(Picture(f"{name}{suffix}", figures.FIGURES[name].shows, data, kind))
    return pictures


def list_points(
    profile: ProfileOption = None,
    axis: AxisOption = [],
    clock: ClockOption = [],
    contender: ContenderOption = [],
    case: CaseOption = [],
    config: ConfigOption = configuration.DEFAULT_PATH,
) -> None:
    """The cases and contenders a sweep would measure, and the profiles there are."""
    from bench.show.listing import listing
    from bench.show.tables import console

    loaded = configuration.load(config)
    plan = plan_of(loaded, Selection(profile or DEFAULT_PROFILE, axis, clock, contender, case))
    console().print(listing(plan, sorted(loaded.profiles)))


def show_config(config: ConfigOption = configuration.DEFAULT_PATH) -> None:
    """The effective configuration, as JSON."""
    loaded = configuration.load(config)
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(loaded), indent=2).decode() + "\n")


def doctor() -> None:
    """Versions, the GPU, what is missing and how to get it."""
    from bench.show.doctor import diagnose
    from bench.show.tables import console

    diagnosis, usable = diagnose()
    console().print(diagnosis)
    if not usable:
        raise typer.Exit(FOUND)


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (show, plot, report, doctor):
        app.command()(verb)
    app.command(name="list")(list_points)
    app.command(name="config")(show_config)
