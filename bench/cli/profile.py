"""`bench profile ...`: one short function for each verb. The steps are in profiles/workflow.py.

Torch is imported only where it is needed. Exit status: 0 captured, 2 wrong usage or a missing tool, 3 the capture
failed (no permission, nothing captured, the program or the tool failed), 130 interrupted. In every case, no
half-written file is left.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from bench.cli import guards
from bench.cli.exit_codes import CAPTURE_FAILED, INTERRUPTED
from bench.cli.options import ClockOption, ConfigOption, ContenderFileOption, ContenderOption
from bench.cli.serve import CACHE
from bench.model import config as configuration
from bench.model import store
from bench.model.case import Case
from bench.model.config import Config, ConfigError, PlannedPoint
from bench.model.paths import RESULTS
from bench.model.records import Results, Selection
from profiles import capture, ncu, nsys, records, workflow
from profiles.capture import CaptureFailed, ProfileError
from profiles.records import CacheControl, NcuBody, NsysBody, ProfileRecord
from profiles.target import Target, make_target
from profiles.workflow import Request

FOLDER = RESULTS / "profiles"
CACHES: tuple[CacheControl, ...] = ("cold", "warm")

app = typer.Typer(no_args_is_help=True, help="Show what happens inside a point: nsys, ncu or torch's profiler.")

CaseArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="[CASE]...", help="A case, as NAME=VALUE,...; values not named come from `axes` of bench.toml."
    ),
]
RecipeOption = Annotated[
    str | None, typer.Option("--recipe", "-r", help="Recipe, by name or file; `profile recipes` lists them.")
]
OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Path of the files to write, without a suffix.")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the command without running it.")]
LaunchesOption = Annotated[int | None, typer.Option("--launches", min=1, help="Launches in one graph or row.")]
ReplaysOption = Annotated[int | None, typer.Option("--replays", min=1, help="Replays of the graph or row.")]
CountsOption = Annotated[
    Path | None, typer.Option("--counts", help="Results of `sweep -k work` to compare with. Default: count now.")
]


def register(parent: typer.Typer) -> None:
    parent.add_typer(app, name="profile")


@app.command(name="nsys")
def nsys_verb(
    case: CaseArgument = [],
    recipe: RecipeOption = None,
    sweep: Annotated[str | None, typer.Option("--sweep", help="Capture this profile's sweep; CASE selects.")] = None,
    contender: ContenderOption = [],
    contender_file: ContenderFileOption = [],
    clock: ClockOption = [],
    launches: LaunchesOption = None,
    replays: ReplaysOption = None,
    output: OutputOption = None,
    dry_run: DryRunOption = False,
    config: ConfigOption = configuration.DEFAULT_PATH,
) -> None:
    """Record a timeline: NVTX ranges, calls of the host, every kernel of a graph."""
    loaded = configuration.load(config)
    if sweep is not None:
        target = _sweep_target(loaded, sweep, recipe, launches, replays)
        options = _options({"-c": contender, "-k": clock, "--case": case})

        def program(folder: Path) -> list[str]:
            return workflow.sweep_program(sweep, options, folder / "discarded.json")
    else:
        target = make_target(
            loaded,
            recipe=recipe,
            cases=case,
            contenders=contender,
            clocks=clock,
            launches=launches,
            replays=replays,
        )

        def program(folder: Path) -> list[str]:
            return capture.runner_command(target)

    stem = _stem(output, target, "nsys")
    if dry_run:
        found = nsys.find()
        command = nsys.profile_command(found, program(stem.parent), stem)
        _print_command(command.arguments, command.dropped, found is None)
        return
    with _failures():
        # A sweep exits with 1 if a point of ours has no time. Under a profiler no point has one.
        _finish(workflow.run_nsys(Request(target, stem), program, (0, 1) if sweep else (0,)), stem)


@app.command(name="server")
def server_verb(
    profile: Annotated[str, typer.Option("--profile", "-p", help="Serve profile of bench.toml.")] = "quick",
    mode: Annotated[str, typer.Option("--mode", "-m", help="Mode of the server; see docs/how-to/serve.md.")] = (
        "plugin"
    ),
    load: Annotated[
        str,
        typer.Option(
            "--load", "-l", help="Kind of load; of these the load of 32 requests at once is used, or the nearest."
        ),
    ] = "decode",
    model: Annotated[
        str | None, typer.Option("--model", help="8b, 1b, a config.json, or a folder with a checkpoint.")
    ] = None,
    after: Annotated[int, typer.Option("--after", min=1, help="How many requests precede the capture.")] = 64,
    requests: Annotated[int, typer.Option("--requests", min=1, help="How many requests are captured.")] = 32,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="How many tokens each request generates.")] = 16,
    cache: Annotated[Path, typer.Option("--cache", help="Folder for random weights and adapters.")] = CACHE,
    output: OutputOption = None,
    dry_run: DryRunOption = False,
    config: ConfigOption = configuration.DEFAULT_PATH,
) -> None:
    """Record a timeline of a running server over some requests, with NVTX ranges of the plugin's hooks."""
    from bench.engine import imports
    from bench.engine.run import usual_first
    from bench.engine.session import Session
    from bench.model.serving import make_serve_plan

    loaded = configuration.load(config)
    plan = make_serve_plan(loaded.serve, loaded.serving, profile, modes=[mode], kinds=[load], model=model)
    asked = usual_first(item for item in plan.loads if item.kind == load)[0]
    session = Session(mode, plan.setup, plan.serving, asked, str(cache.resolve()), after, requests, tokens)
    target = Target(f"server-{mode}", (), requests, 1, plan.serving.seed)

    def program(folder: Path) -> list[str]:
        (folder / "session.json").write_bytes(msgspec.json.encode(session))
        return [sys.executable, "-m", "bench.engine.session", str(folder / "session.json")]

    stem = _stem(output, target, "nsys")
    if dry_run:
        found = nsys.find()
        command = nsys.profile_command(
            found, [sys.executable, "-m", "bench.engine.session", "session.json"], stem, any_domain=True
        )
        _print_command(command.arguments, command.dropped, found is None)
        return
    guards.require_gpu("profile server")
    nsys.require()
    imports.require(imports.SERVER)
    with _failures():
        _finish(workflow.run_nsys(Request(target, stem), program, domain=None), stem)


@app.command(name="ncu")
def ncu_verb(
    case: CaseArgument = [],
    recipe: RecipeOption = None,
    contender: ContenderOption = [],
    contender_file: ContenderFileOption = [],
    clock: ClockOption = [],
    cache: Annotated[list[str], typer.Option("--cache", help="State of the caches: cold or warm. Default: both.")] = [],
    counts: CountsOption = None,
    no_counts: Annotated[bool, typer.Option("--no-counts", help="Do not compare with the work clock.")] = False,
    output: OutputOption = None,
    dry_run: DryRunOption = False,
    config: ConfigOption = configuration.DEFAULT_PATH,
) -> None:
    """Record ncu's counters for one launch of each point: sectors, over-fetch, hit rates, occupancy, stalls."""
    loaded = configuration.load(config)
    caches = _caches(cache)
    target = make_target(loaded, recipe=recipe, cases=case, contenders=contender, clocks=clock, launches=1, replays=1)
    stem = _stem(output, target, "ncu")
    if dry_run:
        found = ncu.find()
        for state in caches:
            command = ncu.profile_command(
                found, capture.runner_command(target), stem.with_name(f"{stem.name}-{state}"), state
            )
            _print_command(command.arguments, command.dropped, found is None)
        return
    with _failures():
        profile = workflow.run_ncu(Request(target, stem), caches)
        if not no_counts:
            _add_counts(loaded, profile, counts)
            records.write(stem.with_name(stem.name + ".json"), profile)
        _finish(profile, stem)


@app.command(name="trace")
def trace_verb(
    case: CaseArgument = [],
    recipe: RecipeOption = None,
    contender: ContenderOption = [],
    contender_file: ContenderFileOption = [],
    clock: ClockOption = [],
    output: OutputOption = None,
    config: ConfigOption = configuration.DEFAULT_PATH,
) -> None:
    """Compare each kernel's device time with the suite's clock, in this process. Writes a Chrome trace."""
    loaded = configuration.load(config)
    target = make_target(
        loaded,
        recipe=recipe,
        cases=case,
        contenders=contender,
        clocks=clock,
        launches=loaded.measure.nodes,
        replays=1,
    )
    stem = _stem(output, target, "trace")
    guards.require_gpu("profile trace")
    with _failures():
        _finish(workflow.run_trace(Request(target, stem), loaded.measure), stem)


@app.command()
def show(
    file: Annotated[
        Path, typer.Argument(help="A record (.json), or a file of a tool: .ncu-rep, .sqlite, .nsys-rep or .qdstrm.")
    ],
    cache: Annotated[
        str | None,
        typer.Option("--cache", help="State of the caches for an .ncu-rep whose name does not say it: cold or warm."),
    ] = None,
    counts: CountsOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write a record of what was read from the tool's files."),
    ] = None,
    config: ConfigOption = configuration.DEFAULT_PATH,
) -> None:
    """Print the tables of a record, or of a tool's own file if it can be read here. Needs no GPU."""
    with _failures():
        profile = _opened(file, cache, configuration.load(config))
        if counts is not None:
            if not isinstance(profile.body, NcuBody):
                raise ProfileError(f"--counts {counts}: {file} holds no counters of ncu to compare with")
            workflow.add_counts(profile, store.read(counts))
        _print(profile, file.parent)
        if output is not None:
            records.write(output, profile)


@app.command()
def recipes() -> None:
    """List the recipes of this checkout."""
    from bench.show.profiles import recipes as listing
    from bench.show.tables import console

    console().print(listing())


@app.command()
def plot(
    file: Annotated[Path, typer.Argument(help="A Chrome trace that `profile trace` wrote.")],
    case: Annotated[str | None, typer.Option("--case", metavar="NAME=V,...", help="Default: the first case.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write. Default: the trace's name, ending in .png.")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(help="Record of the same `profile trace`. Its GPU, commit and date go into the title."),
    ] = None,
) -> None:
    """Draw one replay of each contender of a trace, as PNG and SVG."""
    from plots import timeline

    with _failures():
        origin = records.read(record) if record else None
        for written in timeline.draw(timeline.data(file, case), output or file.with_suffix(".png"), origin):
            sys.stdout.write(f"written to {written}\n")


def _sweep_target(
    config: Config, profile: str, recipe: str | None, launches: int | None, replays: int | None
) -> Target:
    """The target of --sweep, whose launches are those of the sweep's clocks."""
    if recipe is not None or launches is not None or replays is not None:
        raise ConfigError("--sweep launches as a sweep does; expected no --recipe, --launches or --replays with it")
    if profile not in config.profiles:
        raise ConfigError(f"--sweep {profile}: expected one of {', '.join(sorted(config.profiles))}")
    return Target(f"sweep-{profile}", (), config.measure.nodes, config.measure.blocks, config.measure.seed)


def _options(chosen: dict[str, Sequence[str]]) -> list[str]:
    return [part for name, values in chosen.items() for value in values for part in (name, value)]


def _caches(names: Sequence[str]) -> list[CacheControl]:
    for name in names:
        if name not in CACHES:
            raise ConfigError(f"--cache {name}: expected one of {', '.join(CACHES)}")
    return [cache for cache in CACHES if cache in names or not names]


def _stem(output: Path | None, target: Target, tool: str) -> Path:
    if output is not None:
        return output.with_suffix("") if output.suffix == ".json" else output
    return FOLDER / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{target.name}-{tool}"


def _add_counts(config: Config, profile: ProfileRecord, counts: Path | None) -> None:
    """Counts from a file, or counted now in Triton's interpreter."""
    assert isinstance(profile.body, NcuBody)
    points = [(item.case, item.contender) for item in profile.body.kernels if item.clock == "graph"]
    if points:
        workflow.add_counts(profile, store.read(counts) if counts else _counted(config, points, profile.seed))


def _counted(config: Config, points: Sequence[tuple[Case, str]], seed: int) -> Results:
    from bench.execute.sweep import new_results, sweep
    from bench.show.gate import progress_console
    from bench.show.progress import follow

    plan = workflow.counting_plan(config, points, seed)
    results = new_results(plan, Selection(plan.profile))
    with tempfile.TemporaryDirectory(prefix="bench-counts-") as folder:
        follow(sweep(plan, results, Path(folder) / "counts.json"), progress_console())
    return results


def _opened(file: Path, cache: str | None, config: Config) -> ProfileRecord:
    """A record, or one made of a tool's file. Raises ProfileError, CaptureFailed, ResultsError."""
    if file.suffix == ".json":
        profile = records.read(file)
        if isinstance(profile.body, NcuBody) and not profile.body.kernels:
            workflow.read_reports(profile, file.parent)
        return profile
    body: NcuBody | NsysBody
    if file.suffix == ncu.REPORT:
        kernels = ncu.read(file, workflow.cache_of(file, cache))
        points = [PlannedPoint(item.case, item.contender, "graph") for item in kernels]
        body = NcuBody(kernels, workflow.useful_bytes(points, config.measure.seed))
    elif file.suffix == nsys.DATABASE:
        body = workflow.read_database(file)
    elif file.suffix in (nsys.REPORT, nsys.RAW):
        body = _converted(file)
    else:
        known = ", ".join((".json", ncu.REPORT, nsys.DATABASE, nsys.REPORT, nsys.RAW))
        raise ProfileError(f"{file}: expected a file with one of these endings: {known}")
    return workflow.bare_profile(body, file.name, config.measure.seed)


def _converted(file: Path) -> NsysBody:
    """Convert a capture of nsys in a temporary folder."""
    if not file.exists():
        raise ProfileError(f"{file}: does not exist")
    tool = nsys.require()
    with tempfile.TemporaryDirectory(prefix="bench-nsys-") as folder:
        copy = Path(folder) / file.name
        copy.symlink_to(file.resolve())
        return workflow.read_nsys(tool, copy)[0]


def _finish(profile: ProfileRecord, stem: Path) -> None:
    _print(profile, stem.parent)
    sys.stdout.write(f"written to {stem.with_name(stem.name + '.json')}\n")


def _print(profile: ProfileRecord, folder: Path) -> None:
    from bench.show.profiles import shown
    from bench.show.tables import console

    console().print(shown(profile, folder))


def _print_command(arguments: Sequence[str], dropped: Sequence[str], unprobed: bool) -> None:
    sys.stdout.write(shlex.join(arguments) + "\n")
    if unprobed:
        sys.stderr.write("the tool was not found here; these are the flags of a recent version\n")
    for flag in dropped:
        sys.stderr.write(f"left out, because this version lacks it: {flag}\n")


@contextmanager
def _failures() -> Iterator[None]:
    """Turn a failed capture into one line and exit status 3. An interrupt leaves nothing behind."""
    try:
        with capture.terminable():
            yield
    except CaptureFailed as error:
        sys.stderr.write(f"bench: {error}\n")
        raise typer.Exit(CAPTURE_FAILED) from None
    except KeyboardInterrupt:
        sys.stderr.write("bench: interrupted; nothing was kept\n")
        raise typer.Exit(INTERRUPTED) from None
