"""`python -m bench history run|add|show|bisect|export`: one short function for each verb."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from bench.cli import foreign_file, guards, served_file, served_history
from bench.cli.exit_codes import INTERRUPTED
from bench.cli.history_confirm import confirm
from bench.cli.options import (
    AxisOption,
    CaseOption,
    ClockOption,
    CommitsOption,
    ConfigOption,
    ContenderFileOption,
    ContenderOption,
    GpuOption,
    GpusOption,
    LineOption,
    MaybeCommitsOption,
    OneAtATimeOption,
    ProcessesOption,
    ProfileOption,
    RoundsOption,
    SeedOption,
    SglangCheckoutOption,
    SglangLineOption,
    SubjectOption,
)
from bench.cli.selection import confirming, judging, planned
from bench.cli.series import STORE, ExportedOption, StoreOption, source_of, view
from bench.execute import interleaved
from bench.execute.commits import GitSource, Libraries, Source, export
from bench.execute.interleaved import Machine
from bench.execute.sglang_source import Versions
from bench.judge.toolchains import crossings
from bench.model import config as configuration
from bench.model import git, store
from bench.model import history as records
from bench.model import pairs as pair_store
from bench.model.config import Config, ConfigError, Plan, PlannedPoint
from bench.model.history import Commit, Entry
from bench.model.locks import only_writer
from bench.model.paths import ROOT, shown
from bench.model.records import Results, ResultsError, Selection
from bench.model.registry import fits
from bench.model.verdict import Exit, GateError

SGLANG_STORE = ROOT / "history-sglang"  # unless --store says otherwise: a line of its own
SGLANGS_OWN = ("sglang_*",)

app = typer.Typer(no_args_is_help=True, help="Follow times across commits: measure, add, show, bisect, confirm.")


@app.command()
def run(
    commits: MaybeCommitsOption = None,
    anchor: Annotated[
        str | None,
        typer.Option(
            "--anchor",
            metavar="REV",
            help="Commit measured again and again between the others. Default: the stored anchor, else B.",
        ),
    ] = None,
    profile: ProfileOption = None,
    axis: AxisOption = [],
    clock: ClockOption = [],
    contender: ContenderOption = [],
    contender_file: ContenderFileOption = [],
    subject: SubjectOption = [],
    case: CaseOption = [],
    config: ConfigOption = configuration.DEFAULT_PATH,
    processes: ProcessesOption = None,
    rounds: RoundsOption = None,
    folder: StoreOption = STORE,
    exported: ExportedOption = None,
    sglang: SglangLineOption = None,
    sglang_checkout: SglangCheckoutOption = None,
    again: Annotated[bool, typer.Option("--again", help="Measure commits again that are stored already.")] = False,
    gpus: GpusOption = None,
    one_at_a_time: OneAtATimeOption = False,
) -> None:
    """Measure a profile at each commit that the store lacks. After an interrupt, the same command continues."""
    from bench.execute import history as running
    from bench.show.history import follow
    from bench.show.tables import console

    guards.require_measuring()
    loaded = configuration.load(config)
    source = source_of(exported, sglang, sglang_checkout, loaded)
    loaded = judging(loaded, subject or (SGLANGS_OWN if source.varies_sglang else ()))
    folder = SGLANG_STORE if source.varies_sglang and folder == STORE else folder
    line = source.line(_stated(commits, source))
    counted = _counted(clock)
    chosen = profile or _profile(loaded, source, counted)
    selection = Selection(chosen, axis, clock, contender, case, rounds, processes)
    plan = _plan(loaded, selection, counted)
    patterns = subject or contender or loaded.history.contenders
    followed = _of_contenders(plan, patterns)
    if not followed:
        raise ConfigError(f"profile {plan.profile}: none of its contenders matches {' or '.join(patterns)}")
    others = tuple(point for point in plan.points if point not in followed)
    job = running.Session(
        source=source,
        commits=line,
        anchor=None if counted else _anchor(source, anchor, records.read_all(folder), line),
        plan=msgspec.structs.replace(plan, points=tuple(followed)),
        references=() if counted else others,
        selection=selection,
        folder=folder,
        anchor_every=loaded.history.anchor_every,
        again=again,
        gpus=guards.chosen_gpus(gpus, one_at_a_time, counted=counted),
        one_at_a_time=one_at_a_time,
    )
    events = running.run(job)
    with only_writer(folder):
        try:
            follow(events, console(), folder)
        except KeyboardInterrupt:
            events.close()
            console().print("interrupted; the same command continues with the rest")
            raise typer.Exit(INTERRUPTED) from None


@app.command()
def add(
    file: Annotated[
        list[Path], typer.Argument(help="Results files of committed trees, or JSON of NVBench or pytest-benchmark.")
    ],
    folder: StoreOption = STORE,
    commit: Annotated[
        str | None, typer.Option("--commit", metavar="REV", help="Commit that the files of other tools measured.")
    ] = None,
) -> None:
    """Add results made elsewhere to the store: files of this suite, of NVBench or of pytest-benchmark."""
    from bench.show.history import added
    from bench.show.tables import console

    foreign = [path for path in file if foreign_file.is_one(path)]
    engines = [path for path in file if path not in foreign and served_file.is_one(path)]
    file = [path for path in file if path not in (*engines, *foreign)]
    entries = [entry_of(path, store.read(path)) for path in file]  # check all of them before writing one
    for path in engines:
        console().print(served_history.add(path, folder))
    for path in foreign:
        console().print(foreign_file.add(path, folder, commit))
    for path, entry in zip(file, entries, strict=True):
        console().print(added(path, entry, records.write(folder, entry)))


@app.command()
def show(
    commits: LineOption = None,
    clock: ClockOption = [],
    contender: ContenderOption = [],
    subject: SubjectOption = [],
    case: CaseOption = [],
    gpu: GpuOption = None,
    config: ConfigOption = configuration.DEFAULT_PATH,
    folder: StoreOption = STORE,
    exported: ExportedOption = None,
    every: Annotated[bool, typer.Option("--all", help="Also show changes that were undone later.")] = False,
    toolchains: Annotated[
        bool, typer.Option("--toolchains", help="Instead compare two toolchains, on the commits that both measured.")
    ] = False,
) -> None:
    """Print the changes, and a table for each point."""
    from bench.show import toolchains as two
    from bench.show.history import tables
    from bench.show.tables import console

    if tool := foreign_file.clock_of(clock):
        foreign_file.show(folder, tool, [*contender, *subject], config)
        return
    if served_file.CLOCK in clock:
        if toolchains:
            raise ConfigError("--toolchains: compares kernels, and -k engine has none; expected it without -k engine")
        served_history.show(folder, case, [*contender, *subject], gpu, config)
        return
    found = view(folder, commits, clock, [*contender, *subject], case, gpu, config, exported, every)
    console().print(two.tables(crossings(found.eras)) if toolchains else tables(found))


@app.command()
def bisect(
    context: typer.Context,
    commits: CommitsOption,
    sglang: SglangLineOption = None,
    sglang_checkout: SglangCheckoutOption = None,
    profile: ProfileOption = None,
    axis: AxisOption = [],
    contender: ContenderOption = [],
    contender_file: ContenderFileOption = [],
    subject: SubjectOption = [],
    case: CaseOption = [],
    config: ConfigOption = configuration.DEFAULT_PATH,
    processes: Annotated[int | None, typer.Option(min=3, help="Fresh processes for each pair of commits.")] = None,
    exported: ExportedOption = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the measured pairs.")] = None,
    seed: SeedOption = None,
) -> None:
    """Find the commit of A..B that changed the time, with interleaved pairs. Exit status: 0 found, 3 cannot tell."""
    from bench.execute.bisect import Bisection
    from bench.execute.bisect import bisect as search
    from bench.show.history import follow_bisection

    loaded = configuration.load(config)
    source = source_of(exported, sglang, sglang_checkout, loaded)
    loaded = judging(loaded, subject or (SGLANGS_OWN if source.varies_sglang else ()))
    loaded = confirming(loaded, processes)
    machine: Machine = context.obj or Machine()
    line = _with_start(source, commits)
    chosen_profile = profile or _profile(loaded, source, False)
    plan = _plan(loaded, Selection(chosen_profile, axis, ["graph"], contender, case), False)
    points = _of_contenders(plan, subject or contender or loaded.history.contenders)
    machine.require_gpu()
    with Libraries(source) as libraries:
        chosen = seed or machine.layout_seed()
        job = Bisection(loaded, line, interleaved.pair_points(points), libraries, machine.open_side, chosen)
        try:
            named = follow_bisection(search(job))
        finally:
            for number, pairs in enumerate(job.runs, 1):
                if output is not None and any(point.rounds for point in pairs.points):
                    pair_store.write(output / f"bisect-{number}.json", pairs)
    if not named.certain:
        raise typer.Exit(int(Exit.CANNOT_JUDGE))


def _profile(loaded: Config, source: Source, counted: bool) -> str:
    if source.varies_sglang:
        return loaded.history.sglang_profile
    return loaded.history.work_profile if counted else loaded.history.profile


def _stated(commits: str | None, source: Source) -> str:
    """Which commits to take; with --sglang, all named versions by default. Raises ConfigError."""
    if commits is None and not isinstance(source, Versions):
        raise ConfigError("--commits A..B is missing; expected a line of commits, or --sglang with versions")
    return commits or ".."


@app.command(name="export")
def export_commits(
    commits: CommitsOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to create.")],
) -> None:
    """Write the library of each commit into a folder, for a machine without git or without this repository."""
    from bench.show.tables import console

    source = GitSource()
    line = _with_start(source, commits)
    export(source, line, output)
    console().print(f"written to {shown(output)}: {len(line)} commits; use it with --exported {output}")


def entry_of(path: Path, results: Results) -> Entry:
    """A results file as an entry of the store. Raises ResultsError unless it names a commit."""
    code = results.code
    if code.sha is None:
        raise ResultsError(f"{path}: does not say which commit it measured; expected a file made in a git checkout")
    if not git.HASH.fullmatch(code.sha):
        raise ResultsError(f"{path}: code.sha is {code.sha!r}; expected the hash of a commit, hexadecimal digits")
    if code.dirty:
        raise ResultsError(f"{path}: measured on a tree with uncommitted changes; expected a commit")
    if results.env is None or not results.points:
        raise ResultsError(f"{path}: holds no point; expected a sweep that measured something")
    try:
        commit = GitSource().commit(code.sha)
    except git.GitError:  # the commit is not in this clone
        commit = Commit(code.sha, "", code.commit_time)
    return Entry(commit, results.run.id, results)


def _counted(clocks: Sequence[str]) -> bool:
    """Whether counts are wanted. Raises ConfigError if times are wanted and cannot be taken here."""
    guards.refuse_unknown_clocks(clocks)
    guards.refuse_mixed_clocks(clocks)
    if "work" not in clocks:
        guards.require_timing("history run", "--clock work")
    return "work" in clocks


def _plan(loaded: Config, selection: Selection, counted: bool) -> Plan:
    plan = planned(loaded, selection)
    if any((point.clock == "work") != counted for point in plan.points):
        raise ConfigError(f"profile {plan.profile}: has both counts and times; expected --clock NAME")
    return plan


def _anchor(source: Source, name: str | None, stored: Sequence[Entry], line: Sequence[Commit]) -> Commit:
    """The anchor that was named, else the last session's. Two sessions can be joined only by the same anchor."""
    if name is not None:
        return source.commit(name)
    known = [entry for entry in stored if entry.anchor is not None and entry.anchor == entry.commit.sha]
    if known:
        return max(known, key=lambda entry: entry.results.run.started_utc).commit
    return line[-1]


def _with_start(source: Source, commits: str) -> list[Commit]:
    """The line of commits, preceded by A, with which it is compared."""
    if ".." not in commits or commits.startswith(".."):
        raise GateError(f"--commits {commits}: expected A..B, where A is the last commit known to be good")
    return [source.commit(commits.split("..", 1)[0]), *source.line(commits)]


def _of_contenders(plan: Plan, patterns: Sequence[str]) -> list[PlannedPoint]:
    return [point for point in plan.points if any(fits(point.contender, pattern) for pattern in patterns)]


def register(root: typer.Typer) -> None:
    """Add the verbs."""
    app.command()(confirm)
    root.add_typer(app, name="history")
