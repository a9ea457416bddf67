"""Files of NVBench and pytest-benchmark for `compare`, `history add` and `history show`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from bench.model import config as configuration
from bench.model import foreign, git
from bench.model.config import ConfigError
from bench.model.foreign import TOOLS, Tool
from bench.model.history import Commit
from bench.model.paths import shown
from bench.model.records import ResultsError
from bench.model.text import for_log
from bench.show.rows import FORMATS

__all__ = ["add", "clock_of", "compare", "is_one", "show"]


def is_one(file: Path) -> bool:
    """Whether the file was written by one of the tools."""
    return file.is_file() and foreign.tool_of(file) is not None


def clock_of(clocks: Sequence[str]) -> Tool | None:
    """The tool that --clock names, if any."""
    return next((tool for tool in TOOLS if tool in clocks), None)


def compare(before: Path, after: Path, names: Sequence[str], format: str) -> None:
    """Print two files side by side. Raises ResultsError unless one tool wrote both, ConfigError for unknown names."""
    from bench.judge.foreign import compare as compared
    from bench.show.foreign import comparison, comparison_rows
    from bench.show.tables import console

    old, new = foreign.read(before), foreign.read(after)
    if old.tool != new.tool:
        raise ResultsError(f"{before} was written by {old.tool}, {after} by {new.tool}; expected two files of one tool")
    rows = [row for row in compared(old, new) if _wanted(row.name, names)]
    if not rows:
        raise ConfigError(f"-c {' '.join(names)}: neither file has such a benchmark; expected a name or glob pattern")
    if format == "table":
        console().print(comparison(rows, old.tool))
    else:
        sys.stdout.write(for_log(FORMATS[format](comparison_rows(rows))))


def add(path: Path, folder: Path, revision: str | None) -> str:
    """Add a file to the store at its own commit, or at `revision`. Returns a line that says so. Raises ResultsError."""
    from bench.execute.commits import GitSource

    results = foreign.read(path)
    if results.dirty and revision is None:
        raise ResultsError(f"{path}: measured on a tree with uncommitted changes; expected a commit, or --commit REV")
    named = revision or results.sha
    if named is None:
        raise ResultsError(f"{path}: {results.tool} does not say which commit it measured; expected --commit REV")
    try:
        commit = GitSource().commit(named)
    except git.GitError as error:  # the commit is of another repository
        if not git.HASH.fullmatch(named):
            raise ResultsError(f"{path}: {error}; expected a commit of this repository, or a whole hash") from error
        commit = Commit(named, "", results.time)
    written = foreign.write(folder, foreign.entry(path, results, commit))
    return f"{path}: {len(results.points)} benchmarks of {commit.short}, written to {shown(written)}"


def show(folder: Path, tool: Tool, names: Sequence[str], config: Path) -> None:
    """Print the tables of a tool's benchmarks. Raises ResultsError if the store has none."""
    from bench.judge.foreign import series
    from bench.show.foreign import tables
    from bench.show.tables import console

    found = series(foreign.read_all(folder, tool), configuration.load(config).history)
    chosen = [one for one in found if _wanted(one.name, names)]
    if not chosen:
        raise ResultsError(f"{folder}: has no such benchmark of {tool}; add one with: python -m bench history add FILE")
    console().print(tables(chosen, tool))


def _wanted(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)
