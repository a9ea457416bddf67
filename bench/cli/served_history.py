"""`history add` and `history show` of engines."""

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
    """Put a file of `bench serve` into the store; a line that says so. Raises ResultsError unless it names a commit."""
    from bench.execute.commits import GitSource

    results = served.read(path)
    code = results.code
    if code.sha is None or not git.HASH.fullmatch(code.sha) or code.dirty:
        raise ResultsError(f"{path}: does not name a commit that it measured as it is; expected one made in a checkout")
    if results.env is None or not results.processes:
        raise ResultsError(f"{path}: holds no engine; expected a run that measured something")
    try:
        commit = GitSource().commit(code.sha)
    except git.GitError:  # of a commit that is not here
        commit = Commit(code.sha, "", code.commit_time)
    entry = entry_of(results, commit)
    written = served_history.write(folder, entry)
    return f"{path}: {len(entry.figures)} figures of {commit.short}, written to {shown(written)}"


def show(folder: Path, cases: Sequence[str], modes: Sequence[str], gpu: str | None, config: Path) -> None:
    """The tables of engines. Raises ResultsError for a store without any, or with several machines."""
    from bench.show.served_history import engine_tables
    from bench.show.tables import console

    entries = served_history.read_all(folder)
    machines = {entry.gpu or "no GPU" for entry in entries}
    chosen = [name for name in machines if gpu is None or gpu.lower() in name.lower()]
    if len(chosen) != 1:
        known = ", ".join(sorted(machines)) or "no engine; put one there with: python -m bench history add FILE"
        raise ResultsError(f"{folder}: has {known}; expected --gpu NAME that names one")
    kept = [entry for entry in entries if (entry.gpu or "no GPU") == chosen[0]]
    loads = list(dict.fromkeys(item.load for entry in kept for item in entry.figures))
    named = list(dict.fromkeys(item.mode for entry in kept for item in entry.figures))
    limits = rules_of(configuration.load(config).gate)
    console().print(engine_tables(history(kept, limits, served_file.chosen(loads, named, cases, modes))))
