"""`python -m bench VERB`: one short function a verb. Torch is only imported where a verb needs it."""

from __future__ import annotations

import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from bench import config as configuration
from bench import entry
from bench import results as store
from bench.accuracy.verbs import register as register_accuracy
from bench.case import ClockName
from bench.config import Config, ConfigError, Plan
from bench.environment import ROOT, attached_profiler, collect_code, nvml_device
from bench.gate.file_verbs import register as register_files
from bench.gate.session import Instrument
from bench.gate.verbs import register as register_gate
from bench.history.verbs import GpuOption, LineOption, view
from bench.history.verbs import register as register_history
from bench.locks import only_writer
from bench.report.verbs import register as register_report
from bench.results import Point, Results, ResultsError, Run, Schema, Selection
from profiles.verbs import register as register_profiles

TOOL_VERSION = "0.1.0"
RESULTS = ROOT / "results"
DEFAULT_PROFILE = "quick"
FIGURES = ("history", "heatmap", "scaling", "roofline", "rounds", "noise", "gate")

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

ProfileOption = Annotated[str, typer.Option("--profile", "-p", help="Profile of bench.toml.")]
AxisOption = Annotated[
    list[str], typer.Option("--axis", "-a", metavar="NAME=V,...", help="Replace an axis in every grid of the profile.")
]
ClockOption = Annotated[
    list[str], typer.Option("--clock", "-k", help="graph, eager, prepare or work; default: the profile's.")
]
ContenderOption = Annotated[list[str], typer.Option("--contender", "-c", help="Name or glob pattern; may repeat.")]
CaseOption = Annotated[
    list[str], typer.Option("--case", metavar="NAME=V,...", help="Only cases with these values; may repeat.")
]
ConfigOption = Annotated[Path, typer.Option("--config", help="Configuration file.")]


@app.command()
def sweep(
    profile: ProfileOption = DEFAULT_PROFILE,
    axis: AxisOption = [],
    clock: ClockOption = [],
    contender: ContenderOption = [],
    case: CaseOption = [],
    config: ConfigOption = configuration.DEFAULT_PATH,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Results file; default: results/TIME.json.")
    ] = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Go on with this file, repeating nothing.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Re-layouts in a process.")] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Processes, each with its own rounds.")] = None,
) -> None:
    """Verify and measure every point of a profile; without a GPU, count its work."""
    selection = Selection(profile, axis, clock, contender, case, rounds, processes)
    if resume and (selection != Selection(DEFAULT_PROFILE) or output):
        raise ConfigError(f"--resume {resume}: goes on with the file's own selection; expected no other option")
    results = store.read(resume) if resume else None  # bad input is named before anything is made
    plan = _plan(configuration.load(config), results.run.selection if results else selection)
    path = resume or output or RESULTS / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{selection.profile}.json"
    with only_writer(path):
        if resume:
            results = store.read(resume)  # again: another process may have gone on with it until now
            _check_resumable(results, plan, path)
        else:
            results = _begin(plan, selection, path)
        _sweep(plan, results, path)


def _sweep(plan: Plan, results: Results, path: Path) -> None:
    from bench.report.tables import console, summary

    out = console()
    if all(point.clock == "work" for point in plan.points):
        out.print("Work clock: what follows are counts from Triton's interpreter, not times.")
    _run(plan, results, path)
    out.print(summary(results))
    out.print(f"written to {path}")
    if any(point.contender.startswith("csgmv_embed") and not _as_wanted(point) for point in results.points):
        raise typer.Exit(1)


def _as_wanted(point: Point) -> bool:
    """A point of ours is ok; on the work clock it may be too large to be counted."""
    return point.status == "ok" or (point.clock == "work" and point.status == "skipped")


@app.command()
def show(file: Annotated[Path, typer.Argument(help="Results file.")]) -> None:
    """The tables of a results file."""
    from bench.report.tables import console, summary

    console().print(summary(store.read(file)))


@app.command()
def plot(
    figure: Annotated[str, typer.Argument(help=f"One of {', '.join(FIGURES)}; or all that the files allow.")],
    files: Annotated[
        list[Path], typer.Argument(help="Results, records of pairs, reports of the gate, folders of a history.")
    ],
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


@app.command(name="list")
def list_points(
    profile: ProfileOption = "quick",
    axis: AxisOption = [],
    clock: ClockOption = [],
    contender: ContenderOption = [],
    case: CaseOption = [],
    config: ConfigOption = configuration.DEFAULT_PATH,
) -> None:
    """The cases and contenders a sweep would measure, and the profiles there are."""
    from bench.report.listing import listing
    from bench.report.tables import console

    loaded = configuration.load(config)
    plan = _plan(loaded, Selection(profile, axis, clock, contender, case))
    console().print(listing(plan, sorted(loaded.profiles)))


@app.command(name="config")
def show_config(config: ConfigOption = configuration.DEFAULT_PATH) -> None:
    """The effective configuration, as JSON."""
    loaded = configuration.load(config)
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(loaded), indent=2).decode() + "\n")


@app.command()
def doctor() -> None:
    """Versions, the GPU, what is missing and how to get it."""
    from bench.report.doctor import diagnose
    from bench.report.tables import console

    diagnosis, usable = diagnose()
    console().print(diagnosis)
    if not usable:
        raise typer.Exit(1)


@app.command()
def tune(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: the library's table for this GPU.")
    ] = None,
) -> None:
    """Time launch configurations on this GPU and write the library's table for it."""
    _require_timing("tune")
    import torch

    from bench.report.progress import tuned
    from bench.report.tables import console
    from bench.tune import ADAPTERS, VOCAB, TunedTable, as_fields, encode
    from bench.tune import tune as run_tune
    from csgmv_embed.launch import tiles

    gpu = torch.cuda.get_device_name()
    rows = [as_fields(row) for row in tuned(run_tune(), console())]
    code = collect_code()
    table = TunedTable(gpu, code.sha, "python -m bench tune", VOCAB, ADAPTERS, rows)
    path = output or tiles.table_path(gpu)
    store.write_bytes(path, encode(table))
    console().print(f"written to {path}")


@app.command()
def layer(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the samples as JSON.")] = None,
) -> None:
    """Time SGLang's embedding layer and lm_head with the plugin on and off."""
    _require_timing("layer")
    from bench import layer as layers
    from bench.environment import collect_environment
    from bench.report.layer import shown
    from bench.report.tables import console

    rows = [*shown(layers.compare(), console())]
    if output is not None:
        store.write_bytes(output, layers.encode(rows, collect_environment("cuda"), collect_code()))
        console().print(f"written to {output}")


register_gate(app)
register_files(app)
register_history(app)
register_report(app)
register_profiles(app)
register_accuracy(app)


def _require_timing(verb: str) -> None:
    """Raises ConfigError where times cannot be taken."""
    if nvml_device() is None:
        raise ConfigError(f"{verb}: needs an NVIDIA GPU and none was found")
    if profiler := attached_profiler():
        raise ConfigError(f"{verb}: runs under {profiler}; a profiled run yields no timing")


def _plan(loaded: Config, selection: Selection) -> Plan:
    """The plan of a selection. Without a GPU and without a wish for a clock: the work clock."""
    for name in selection.clocks:
        if name not in configuration.CLOCKS:
            raise ConfigError(f"--clock {name}: expected one of {', '.join(configuration.CLOCKS)}")
    clocks: list[ClockName] = list(selection.clocks)  # type: ignore[arg-type]
    has_gpu = nvml_device() is not None
    if not has_gpu and any(name != "work" for name in clocks):
        raise ConfigError(f"--clock {' '.join(clocks)}: needs an NVIDIA GPU and none was found; expected work")
    plan = configuration.make_plan(
        loaded,
        selection.profile,
        overrides=configuration.parse_axis_overrides(selection.axes),
        clocks=clocks if clocks or has_gpu else ["work"],
        contenders=selection.contenders,
        cases=selection.cases,
    )
    measure = msgspec.structs.replace(
        plan.measure,
        rounds=selection.rounds or plan.measure.rounds,
        processes=selection.processes or plan.measure.processes,
    )
    if all(point.clock == "work" for point in plan.points):
        measure = msgspec.structs.replace(measure, rounds=1, processes=1)  # counts are exact: no replicates
    return msgspec.structs.replace(plan, measure=measure)


def _begin(plan: Plan, selection: Selection, path: Path) -> Results:
    from bench.sweep import argv, plan_digest

    try:
        exists = path.exists()
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written: {error.strerror}") from error
    if exists:
        raise ResultsError(f"{path}: exists; expected a new file, or --resume {path} to go on with it")
    run = Run(
        id=str(uuid.uuid4()),
        kind="sweep",
        selection=selection,
        started_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        duration_s=0.0,
        argv=argv(),
        seed=plan.measure.seed,
        plan_sha256=plan_digest(plan),
        tool_version=TOOL_VERSION,
    )
    return Results(Schema(), run, collect_code())


def _check_resumable(results: Results, plan: Plan, path: Path) -> None:
    """Raises ResultsError if going on would mix two measurements in one file."""
    from bench.sweep import plan_digest

    code = collect_code()
    for what, then, now in (
        ("the format", results.schema.version, store.SCHEMA_VERSION),
        ("the plan (bench.toml or the options)", results.run.plan_sha256, plan_digest(plan)),
        ("the kernel's source", results.code.kernel_source_sha256, code.kernel_source_sha256),
        ("the suite's measuring code", results.code.instrument, code.instrument),
    ):
        if then != now:
            raise ResultsError(f"{path}: {what} has changed since the file was begun; expected a new sweep")
    results.run.resumed += 1


def _run(plan: Plan, results: Results, path: Path) -> None:
    from bench.report.progress import follow
    from bench.report.tables import console
    from bench.sweep import sweep as run_sweep

    events = run_sweep(plan, results, path)
    try:
        follow(events, console())
    except KeyboardInterrupt:
        events.close()
        console().print(f"interrupted; go on with: python -m bench sweep --resume {path}", soft_wrap=True)
        raise typer.Exit(entry.INTERRUPTED) from None


def main(arguments: list[str] | None = None, instrument: Instrument | None = None) -> None:
    """Run the command line and end the process. The gate measures with `instrument`."""
    entry.run(app, arguments, instrument)
