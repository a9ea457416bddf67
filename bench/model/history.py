"""The store of a history: one JSON file for each commit of each session, so that two branches never edit the same one.

History of the format (semver, as in bench/model/store.py)
1.1.0  a commit may have a label: the version of an SGLang; `sha` is then a hash of what was measured
1.0.0  first version
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from bench.model import store
from bench.model.faults import results_faults
from bench.model.fields import Count, Sha, Uuid
from bench.model.records import Results, ResultsError

HISTORY_NAME, HISTORY_VERSION = "csgmv-bench-history", "1.1.0"
NO_GPU = "no-gpu"
ENGINE = ".engine.json"  # files of engines, which bench/model/served_history.py reads
FOREIGN = ".foreign.json"  # of other tools: bench/model/foreign.py


class HistorySchema(msgspec.Struct):
    """Name and version of the format."""

    name: str = HISTORY_NAME
    version: str = HISTORY_VERSION


class Commit(msgspec.Struct, frozen=True):
    """A commit of the history. `library` names the content of csgmv_embed: equal for commits that do not change it.

    depth   commits before it along first parents: the order of those that were made in the same second
    """

    sha: Sha
    subject: str = ""
    time: str | None = None  # ISO 8601, of the commit
    parent: Sha | None = None  # the first one
    library: str | None = None
    depth: Count = 0
    label: str | None = None  # what it is called instead of its hash

    @property
    def short(self) -> str:
        return self.label or self.sha[:9]


class Entry(msgspec.Struct):
    """What one session found at one commit.

    session          the commits measured together; its processes are numbered over all of them, in the order they ran
    anchor           the commit that was measured between the others, against drift; None if there was none
    counted_at       the commit whose counts these are, because its library is the same
    """

    commit: Commit
    session: Uuid
    results: Results
    anchor: Sha | None = None
    counted_at: Sha | None = None
    schema: HistorySchema = msgspec.field(default_factory=HistorySchema)

    @property
    def gpu(self) -> str | None:
        found = self.results.env.identity.get("gpu") if self.results.env else None
        return str(found) if found is not None else None


def path_of(folder: Path, entry: Entry) -> Path:
    """Where an entry lies: in a folder for each machine, with commit and session in the file's name."""
    machine = re.sub(r"[^a-z0-9]+", "-", (entry.gpu or NO_GPU).lower()).strip("-")
    return folder / machine / f"{entry.commit.short}-{entry.session[:8]}.json"


def write(folder: Path, entry: Entry) -> Path:
    """Write the entry in one step, with one value for each round. Raises ResultsError."""
    path = path_of(folder, entry)
    results = msgspec.convert(msgspec.to_builtins(entry.results), Results)
    argv = results.run.argv
    compacted = store.compact(results)
    compacted.run.argv = argv
    store.write(path, msgspec.structs.replace(entry, results=compacted))
    return path


def read(path: Path) -> Entry:
    """Read one entry. Raises ResultsError."""
    return store.read_document(path, Entry, HISTORY_NAME, HISTORY_VERSION, faults)


def read_all(folder: Path) -> list[Entry]:
    """Every entry below a folder; none if the folder does not exist.

    Raises ResultsError for any file that is not an entry.
    """
    return [read(path) for path in sorted(folder.rglob("*.json")) if not path.name.endswith((ENGINE, FOREIGN))]


def machines(entries: Sequence[Entry]) -> list[str | None]:
    """The GPU models of the entries; None for entries without a GPU."""
    return list(dict.fromkeys(entry.gpu for entry in entries))


def of_machine(entries: Sequence[Entry], gpu: str | None, folder: Path) -> list[Entry]:
    """The entries of one GPU model: the one whose name contains `gpu`, or the only one. Raises ResultsError."""
    known = machines(entries)
    found = [name for name in known if gpu is None or gpu.lower() in (name or NO_GPU).lower()]
    names = ", ".join(sorted(name or NO_GPU for name in known))
    if not known:
        raise ResultsError(
            f"{folder}: holds no history; make one with: python -m bench history run --commits A..B "
            "(or --sglang FIRST..LAST)"
        )
    if not found:
        raise ResultsError(f"--gpu {gpu}: {folder} has {names}; expected a part of one of these names")
    if len(found) > 1:
        raise ResultsError(f"{folder}: has results of {names}, which cannot share a series; expected --gpu NAME")
    return [entry for entry in entries if entry.gpu == found[0]]


def faults(entry: Entry) -> Iterator[str]:
    """Faults of an entry of a history."""
    yield from results_faults(entry.results, "results.")
