"""`history add` and `history show` for files of `bench serve`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.cli import served_file
from bench.judge.served_gate import rules_of
from bench.judge.served_series import entry_of, history
from bench.model import config as configuration
from bench.model import git, served, served_history
from bench.model.history import Commit
from bench.model.paths import shown
from bench.model.records import ResultsError


def add(path: Path, folder: Path) -> str:
    """Add a file of `bench serve` to the store and return a line that says so. Raises ResultsError unless it names a
    commit.
    """
    from bench.execute.commits import GitSource

    results = served.read(path)
    code = results.code
    if code.sha is None or not git.HASH.fullmatch(code.sha) or code.dirty:
        raise ResultsError(
            f"{path}: does not name the unchanged commit that it measured; expected a file made in a clean git checkout"
        )
    if results.env is None or not results.processes:
        raise ResultsError(f"{path}: holds no measured engine; expected a run that measured something")
    try:
        commit = GitSource().commit(code.sha)
    except git.GitError:  # the commit is not in this clone
        commit = Commit(code.sha, "", code.commit_time)
    entry = entry_of(results, commit)
    written = served_history.write(folder, entry)
    return f"{path}: {len(entry.figures)} figures of {commit.short}, written to {shown(written)}"


def show(folder: Path, cases: Sequence[str], modes: Sequence[str], gpu: str | None, config: Path) -> None:
    """Print the tables of engines. Raises ResultsError if the store has none, or several machines."""
    from bench.show.served_history import engine_tables
    from bench.show.tables import console

    entries = served_history.read_all(folder)
    machines = {entry.gpu or "no GPU" for entry in entries}
    chosen = [name for name in machines if gpu is None or gpu.lower() in name.lower()]
    if len(chosen) != 1:
        known = ", ".join(sorted(machines)) or "no file of bench serve; add one with: python -m bench history add FILE"
        raise ResultsError(f"{folder}: has {known}; expected --gpu NAME that names one")
    kept = [entry for entry in entries if (entry.gpu or "no GPU") == chosen[0]]
    loads = list(dict.fromkeys(item.load for entry in kept for item in entry.figures))
    named = list(dict.fromkeys(item.mode for entry in kept for item in entry.figures))
    limits = rules_of(configuration.load(config).gate)
    console().print(engine_tables(history(kept, limits, served_file.chosen(loads, named, cases, modes))))
