"""The commands that measure something again, as one would type them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from itertools import pairwise

from bench.judge.serving import ServedFigure
from bench.model.case import Case
from bench.model.history import Entry
from bench.model.records import Point, Results, Selection
from bench.model.served import ServeResults

BENCH = ("python", "-m", "bench")
# What a contender needs beside its name; where it lies, only the command that measured it says.
SOURCES = ("--sglang", "--contender-file")
DEFAULT_STORES = ("history", "history-sglang")


def case_option(case: Case) -> str:
    """The value of --case that selects only this case. A lookup's key leaves out its op."""
    return case.key if "op=" in case.key else f"op={case.op},{case.key}"


def sweep(results: Results, point: Point) -> str:
    """The sweep of only this point, at the commit of the results."""
    return shlex.join([*BENCH, "sweep", *_selected(results.run.selection, point), *_sources(results.run.argv)])


def history(entry: Entry, point: Point, store: str, commit: str) -> str:
    """The command that measures this point again at a commit, in addition to what the store has."""
    line = ["--sglang", commit] if entry.commit.label else ["--commits", f"{commit}~1..{commit}"]
    folder = [] if store in DEFAULT_STORES else ["--store", store]
    chosen = _selected(entry.results.run.selection, point)
    return shlex.join([*BENCH, "history", "run", *line, "--again", *folder, *chosen])


def serve(results: ServeResults, figure: ServedFigure) -> str:
    """The engines of this mode and of the one that it is told by, asked this kind of load alone."""
    run, load = results.run, figure.case.load
    modes = dict.fromkeys((results.serving.reference, figure.mode))
    chosen = [part for mode in modes for part in ("-m", mode)]
    chosen += [] if load.kind == "start" else ["-l", load.kind]  # every engine starts
    chosen += ["--model", run.model] if run.model else []
    chosen += ["--tp", str(run.tp)] if run.tp else []
    return shlex.join([*BENCH, "serve", "-p", run.profile, *chosen])


def _selected(selection: Selection, point: Point) -> list[str]:
    axes = [part for axis in selection.axes for part in ("-a", axis)]
    chosen = ["-k", point.clock, "-c", point.contender, "--case", case_option(point.case)]
    return ["-p", selection.profile, *axes, *chosen]


def _sources(argv: Sequence[str]) -> Iterator[str]:
    for option, value in pairwise(argv):
        if option in SOURCES:
            yield from (option, value)
