"""The verbs that only read: `show`, `plot`, `list`, `config` and `doctor`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from bench.cli import guards, served_file
from bench.cli.exit_codes import FOUND
from bench.cli.measure import plan_of
from bench.cli.options import (
    AxisOption,
    CaseOption,
    ClockOption,
    ConfigOption,
    ContenderFileOption,
    ContenderOption,
    FilesArgument,
    GpuOption,
    LineOption,
    ProfileOption,
    RowsFormatOption,
    WideOption,
)
from bench.cli.selection import DEFAULT_PROFILE, of_files
from bench.cli.series import view
from bench.judge.figures import CONTENDER, OURS, SORTS, Figure, figures, pivoted, standings
from bench.model import config as configuration
from bench.model import history as stored
from bench.model import pairs, store, verdict
from bench.model.case import CLOCKS, Case
from bench.model.config import ConfigError
from bench.model.history import HISTORY_NAME
from bench.model.pairs import PAIRS_NAME
from bench.model.records import SCHEMA_NAME, Results, ResultsError, Selection
from bench.model.registry import fits
from bench.model.text import for_log
from bench.model.verdict import REPORT_NAME
from bench.show.rows import FORMATS
from profiles.records import PROFILE_NAME
from profiles.records import read as read_profile

if TYPE_CHECKING:  # they import matplotlib, or what formats
    from rich.console import RenderableType

EXPECTED = (
    "a results file, a record of pairs, a file of bench serve, a gate's report, a profiler's record "
    "or a folder of a history"
)
FIGURES = ("history", "heatmap", "scaling", "bandwidth", "rounds", "noise", "gate", "serve", "where")


def show(
    file: Annotated[
        Path,
        typer.Argument(
            help="Results, pairs, a file of `serve`, a gate's report, a profiler's record, or a folder of a history."
        ),
    ],
    case: CaseOption = [],
    contender: ContenderOption = [],
    subject: Annotated[
        str | None,
        typer.Option("--subject", metavar="NAME", help="Compare the others with this contender, instead of with ours."),
    ] = None,
    clock: ClockOption = [],
    sort: Annotated[str | None, typer.Option("--sort", help="Sort by ratio, time or floor, the worst first.")] = None,
    top: Annotated[
        int | None, typer.Option("--top", min=1, help="Show only the worst N, by --sort (default: ratio).")
    ] = None,
    pivot: Annotated[
        str | None,
        typer.Option(
            "--pivot",
            metavar="AXIS,AXIS",
            help="The best peer's time over ours, by two axes. With the axis `contender`: every competitor's time "
            "over ours. "
            "AXIS+AXIS joins two axes into one.",
        ),
    ] = None,
    format: RowsFormatOption = "table",
    wide: WideOption = False,
) -> None:
    """Print the tables of a file, or only the points that the options select."""
    from bench.show.tables import console

    guards.refuse_unknown_clocks(clock, (*CLOCKS, served_file.CLOCK))
    axes = _axes(pivot)
    if sort is not None and sort not in SORTS:
        raise ConfigError(f"--sort {sort}: expected one of {', '.join(SORTS)}")
    guards.refuse_unknown_format(format)
    if served_file.is_one(file):
        if sort or top or pivot or subject:
            raise ConfigError(
                f"{file}: is a file of bench serve; expected no --sort, --top, --pivot or --subject with it"
            )
        served_file.show(file, case, contender, clock, format, wide=wide)
        return
    if other := _of_another_kind(file):
        if case or contender or subject or clock or sort or top or pivot or format != "table":
            raise ConfigError(f"{file}: is not a results file; expected no option but --wide with it")
        console(wide=wide).print(other())
        return
    results = store.read(file)
    chosen = figures(results, of_files(results.points, clock or CLOCKS, contender, case), _subject(results, subject))
    if not chosen:
        raise ResultsError(f"{file}: no point fits --case, -c and -k together; {_present(results)}")
    if axes or sort or top:
        chosen = _with_times(file, chosen, axes)
    if format != "table":
        rows = _pivot_rows(chosen, axes, format) if axes else _rows(chosen, sort, top)
        sys.stdout.write(for_log(FORMATS[format](rows)))
        return
    console(wide=wide).print(_answer(results, chosen, sort, top, axes, wide))


def _present(results: Results) -> str:
    """What a selection can choose of."""
    contenders = dict.fromkeys(point.contender for point in results.points)
    clocks = dict.fromkeys(point.clock for point in results.points)
    return f"the file has the contenders {', '.join(contenders)} and the clocks {', '.join(clocks)}"


def _with_times(file: Path, chosen: list[Figure], axes: tuple[str, str] | None) -> list[Figure]:
    """What --sort, --top and --pivot can order: no counts. Raises ConfigError if there is nothing."""
    timed = [item for item in chosen if item.point.clock != "work"]
    if not timed:
        raise ConfigError(
            f"{file}: counts have no times, by which --sort, --top and --pivot order; expected `show {file} -k work` "
            "for the counts, or `compare` for the counts of two files"
        )
    if axes is not None and not pivoted(standings(timed), axes).cells:
        raise ConfigError(
            f"{file}: no chosen case has a time of a peer and of ours; expected other options with --pivot"
        )
    return timed


def _subject(results: Results, name: str | None) -> str:
    """The one contender of the file that matches a name or pattern; ours if none is named. Raises ConfigError."""
    if name is None:
        return OURS
    known = list(dict.fromkeys(point.contender for point in results.points))
    found = [one for one in known if fits(one, name)]
    if len(found) != 1:
        raise ConfigError(f"--subject {name}: matches {len(found)} contenders; expected one of {', '.join(known)}")
    return found[0]


def _answer(
    results: Results,
    chosen: list[Figure],
    sort: str | None,
    top: int | None,
    axes: tuple[str, str] | None,
    wide: bool,
) -> RenderableType:
    from rich.console import Group

    from bench.show import tables

    if axes is not None:
        return Group(tables.heading(results), tables.pivot_table(standings(chosen), axes, wide=wide))
    if sort is not None or top is not None:
        by = sort or "ratio"
        return tables.ranked(results, standings(chosen, sort=by, top=top), by, wide=wide)
    return tables.summary(results, chosen, wide=wide)


def _pivot_rows(chosen: list[Figure], axes: tuple[str, str], format: str) -> list[dict[str, object]]:
    """The rows of a pivot: formatted for Markdown, else as numbers."""
    from bench.show import tables

    found = pivoted(standings(chosen), axes)
    if format == "markdown":
        return tables.pivot_words(found, axes)
    blank = dict.fromkeys(map(str, found.across))
    return [
        {axes[0]: row} | blank | {str(value): cell[0] for (down, value), cell in found.cells.items() if down == row}
        for row in found.down
    ]


def _rows(chosen: list[Figure], sort: str | None, top: int | None) -> list[dict[str, object]]:
    """Each selected point as plain values."""
    if sort is None and top is None:
        return [item.as_fields() for item in chosen]
    worst = standings(chosen, sort=sort or "ratio", top=top)
    return [item.as_fields() for standing in worst for item in standing.by_name.values()]


def _axes(pivot: str | None) -> tuple[str, str] | None:
    """The two axes of --pivot: axes of a case, or `contender`. Raises ConfigError."""
    if pivot is None:
        return None
    names = [name.strip() for name in pivot.split(",")]
    parts = [part for name in names for part in name.split("+")]
    known = (*Case.__struct_fields__, CONTENDER)
    joined = any(CONTENDER in name.split("+") and name != CONTENDER for name in names)
    if len(names) != 2 or len({*parts}) != len(parts) or not {*parts} <= {*known} or joined:
        raise ConfigError(
            f"--pivot {pivot}: expected two of {', '.join(known)}, with a comma between them; "
            "phase+rank joins two into one axis, contender cannot be joined"
        )
    return names[0], names[1]


def _of_another_kind(file: Path) -> Callable[[], RenderableType] | None:
    """A function that renders a file of another kind; None for a results file."""
    if file.is_dir():
        from bench.show.history import tables

        return lambda: tables(view(file, None, [], [], [], None))
    name = store.format_of(file, EXPECTED)
    if name == SCHEMA_NAME:
        return None
    if name in (PAIRS_NAME, REPORT_NAME):
        from bench.judge.times import judge_pairs
        from bench.show.gate import shown as shown_report

        return lambda: shown_report(judge_pairs(pairs.read(file)) if name == PAIRS_NAME else verdict.read(file))
    if name == HISTORY_NAME:
        from bench.show.tables import summary

        return lambda: summary(stored.read(file).results)
    if name == PROFILE_NAME:
        from bench.show.profiles import shown as shown_profile

        return lambda: shown_profile(read_profile(file), file.parent)
    raise ResultsError(f"{file}: is a {name}; expected {EXPECTED}")


def plot(
    figure: Annotated[
        str, typer.Argument(help=f"One of {', '.join(FIGURES)}; or `all`: every figure that the files allow.")
    ],
    files: FilesArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; with `all`, the prefix of the files' names.")
    ] = None,
    commits: LineOption = None,
    clock: ClockOption = [],
    gpu: GpuOption = None,
) -> None:
    """Draw a figure, as PNG and SVG. --commits, --clock and --gpu select from a history."""
    if figure not in (*FIGURES, "all"):
        raise ConfigError(f"figure {figure!r} is unknown; expected one of {', '.join(FIGURES)} or all")
    from plots import figures, inputs

    single = f"{files[0].stem}-{figure}.png" if figure != "all" else f"{files[0].stem}.png"
    path = output or files[0].with_name(single)
    found = inputs.load(files)
    for written in figures.draw(figure, found, lambda folder: view(folder, commits, clock, [], [], gpu), path):
        sys.stdout.write(f"written to {written}\n")


def list_points(
    profile: ProfileOption = None,
    axis: AxisOption = [],
    clock: ClockOption = [],
    contender: ContenderOption = [],
    contender_file: ContenderFileOption = [],
    case: CaseOption = [],
    config: ConfigOption = configuration.DEFAULT_PATH,
) -> None:
    """List what a sweep would measure (cases and contenders), and all profiles."""
    from bench.show.listing import listing
    from bench.show.tables import console

    loaded = configuration.load(config)
    plan = plan_of(loaded, Selection(profile or DEFAULT_PROFILE, axis, clock, contender, case))
    console().print(listing(plan, sorted(loaded.profiles)))


def show_config(config: ConfigOption = configuration.DEFAULT_PATH) -> None:
    """Print the configuration in force, as JSON."""
    loaded = configuration.load(config)
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(loaded), indent=2).decode() + "\n")


def doctor() -> None:
    """Print versions, the GPU, what is missing and how to install it."""
    sys.stderr.write(
        "looking for packages, a GPU and profilers, and importing each contender; this takes some seconds\n"
    )
    sys.stderr.flush()
    from bench.show.doctor import diagnose
    from bench.show.tables import console

    diagnosis, usable = diagnose()
    console().print(diagnosis)
    if not usable:
        raise typer.Exit(FOUND)


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (show, plot, doctor):
        app.command()(verb)
    app.command(name="list")(list_points)
    app.command(name="config")(show_config)
