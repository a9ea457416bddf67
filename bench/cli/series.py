"""Series and changes of a line of commits, read from a store. `show`, `plot` and `report` use them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.selection import of_files
from bench.execute.commits import ExportedSource, GitSource, Source
from bench.execute.sglang_source import Checkout, Versions
from bench.judge.changes import changes
from bench.judge.history import History
from bench.judge.moves import moves, standing
from bench.judge.series import eras, order_of
from bench.model import config as configuration
from bench.model import git
from bench.model import history as records
from bench.model.case import ClockName
from bench.model.config import Config, ConfigError
from bench.model.history import Commit, Entry
from bench.model.paths import ROOT
from bench.model.records import ResultsError

STORE = ROOT / "history"
StoreOption = Annotated[Path, typer.Option("--store", help="Folder of the history. Default: history/.")]
ExportedOption = Annotated[
    Path | None,
    typer.Option(
        "--exported", help="Take the commits from this folder, which `history export` wrote, instead of from git."
    ),
]


def view(
    folder: Path,
    commits: str | None,
    clocks: Sequence[str],
    contenders: Sequence[str],
    cases: Sequence[str],
    gpu: str | None,
    config: Path = configuration.DEFAULT_PATH,
    exported: Path | None = None,
    every: bool = False,
) -> History:
    """The series of a line of commits in the store, with their changes. Raises ResultsError, GateError."""
    stored = records.read_all(folder)
    clock = _one_clock(clocks, stored, folder)
    entries = records.of_machine([item for item in stored if _has(item, clock)], gpu, folder)
    return _viewed(folder, stored, entries, clock, commits, contenders, cases, config, exported, every)


def views(folder: Path, commits: str | None, clocks: Sequence[str], gpu: str | None) -> Iterator[History]:
    """Everything the store has on a line of commits: a history for each machine and clock. Raises ResultsError."""
    everything = stored = records.read_all(folder)
    _one_clock(clocks[:1], stored, folder)  # an empty store, or an unknown clock
    if gpu is not None:
        stored = records.of_machine(stored, gpu, folder)
    for machine in sorted(records.machines(stored), key=lambda gpu: (gpu is None, gpu or "")):
        of_machine = [entry for entry in stored if entry.gpu == machine]
        for clock in configuration.CLOCKS:
            entries = [entry for entry in of_machine if _has(entry, clock)]
            if entries and (not clocks or clock in clocks):
                yield _viewed(folder, everything, entries, clock, commits)


def _viewed(
    folder: Path,
    stored: Sequence[Entry],
    entries: Sequence[Entry],
    clock: ClockName,
    commits: str | None,
    contenders: Sequence[str] = (),
    cases: Sequence[str] = (),
    config: Path = configuration.DEFAULT_PATH,
    exported: Path | None = None,
    every: bool = False,
) -> History:
    line = source_of(exported).line(commits) if commits is not None else _own_line(entries)
    order = order_of(entries, line)
    if not order:
        raise ResultsError(
            f"{folder}: none of the commits {commits} is stored; measure them with: python -m bench history run"
        )
    wanted = of_files([point for entry in entries for point in entry.results.points], [clock], contenders, cases)
    found = eras(entries, order, wanted, [clock])
    if not found:
        raise ResultsError(f"{folder}: no point of these commits has this contender and case; expected others")
    settings = configuration.load(config).history
    known = list(line) if line is not None else order
    changed = [changes(one, known, settings) for era in found for one in era.series]
    judged = [(found_here, []) if every else standing(found_here, settings) for found_here in changed]
    named = {entry.commit.sha: entry.commit for entry in stored}  # of other clocks and machines, too: with a subject
    return History(
        clock=clock,
        line=known,
        eras=found,
        changes=[
            replace(change, suspects=tuple(named.get(commit.sha, commit) for commit in change.suspects))
            for kept, _ in judged
            for change in kept
        ],
        missing=[commit for commit in known if commit.sha not in {item.sha for item in order}],
        moves=moves(found, settings),
        gone=[one for _, gone in judged for one in gone],
    )


def _own_line(entries: Sequence[Entry]) -> list[Commit] | None:
    """The part of HEAD's line with all entries. None if the line lacks some; then commit times order the entries."""
    source = GitSource()
    stored = {entry.commit.sha for entry in entries}
    try:
        own = source.ancestry("HEAD")
    except git.GitError:  # no repository
        return None
    places = [index for index, sha in enumerate(own) if sha in stored]
    if not places or len(places) != len(stored):
        return None
    first, last = own[places[0]], own[places[-1]]
    return [source.commit(first), *(source.line(f"{first}..{last}") if last != first else [])]


def source_of(
    exported: Path | None,
    sglang: str | None = None,
    sglang_checkout: Path | None = None,
    config: Config | None = None,
) -> Source:
    """Where commits come from: one of these, or this checkout if none is given. Raises ConfigError."""
    if sum(item is not None for item in (exported, sglang, sglang_checkout)) > 1:
        raise ConfigError("--exported, --sglang and --sglang-checkout exclude each other; expected one of them")
    if sglang is not None:
        return Versions(sglang, config.sglang_files if config else ())
    if sglang_checkout is not None:
        return Checkout(sglang_checkout)
    return ExportedSource(exported) if exported is not None else GitSource()


def _one_clock(clocks: Sequence[str], stored: Sequence[Entry], folder: Path) -> ClockName:
    known = {point.clock for entry in stored for point in entry.results.points}
    if len(clocks) > 1:
        raise ConfigError("--clock: a series has one clock; expected the option once")
    for name in clocks or configuration.CLOCKS:
        if name in known:
            return name
    if not known:
        raise ResultsError(
            f"{folder}: holds no history; make one with: python -m bench history run --commits A..B "
            "(or --sglang FIRST..LAST)"
        )
    raise ResultsError(f"--clock {clocks[0]}: {folder} has {', '.join(sorted(known))}; expected one of them")


def _has(entry: Entry, clock: ClockName) -> bool:
    return any(point.clock == clock for point in entry.results.points)
