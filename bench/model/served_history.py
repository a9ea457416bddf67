"""Engines in the store of a history: of each file of `bench serve` one value a process of every figure.

Such a file lies beside the others of its machine, and its name ends in .engine.json.

History of the format (semver, as in bench/model/store.py)
1.0.0  first version
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from bench.model import store
from bench.model.faults import twice
from bench.model.fields import Count, Positive, Uuid
from bench.model.history import ENGINE, NO_GPU, Commit
from bench.model.records import Environment
from bench.model.serving import Load, ModeName, Serving, Setup

NAME, VERSION = "csgmv-bench-engine-history", "1.0.0"


class EngineHistorySchema(msgspec.Struct):
    """Name and version of the format."""

    name: str = NAME
    version: str = VERSION


class EngineFigure(msgspec.Struct):
    """A figure of a mode under a load: its value in the processes of the repeats; status and reason as of its point."""

    load: Load
    mode: ModeName
    figure: str
    unit: str
    status: str
    reason: str | None = None
    repeats: list[Count] = []
    values: list[Positive] = []


class EngineEntry(msgspec.Struct):
    """The figures of one run of `bench serve` at one commit."""

    commit: Commit
    session: Uuid
    started_utc: str
    setup: Setup
    serving: Serving
    env: Environment
    figures: list[EngineFigure]
    schema: EngineHistorySchema = msgspec.field(default_factory=EngineHistorySchema)

    @property
    def gpu(self) -> str | None:
        """The model of the GPU."""
        found = self.env.identity.get("gpu")
        return str(found) if found is not None else None


def write(folder: Path, entry: EngineEntry) -> Path:
    """Write the entry in one step. Returns the file. Raises ResultsError."""
    machine = re.sub(r"[^a-z0-9]+", "-", (entry.gpu or NO_GPU).lower()).strip("-")
    path = folder / machine / f"{entry.commit.short}-{entry.session[:8]}{ENGINE}"
    store.write(path, entry)
    return path


def read_all(folder: Path) -> list[EngineEntry]:
    """Every engine's entry below a folder, in the order of the commits. Raises ResultsError."""
    found = [store.read_document(path, EngineEntry, NAME, VERSION, faults) for path in folder.rglob(f"*{ENGINE}")]
    return sorted(found, key=lambda entry: (entry.commit.time or "", entry.commit.depth, entry.started_utc))


def faults(entry: EngineEntry) -> Iterator[str]:
    """Faults of an entry."""
    keys = []
    for index, item in enumerate(entry.figures):
        place = f"figures[{index}] ({item.mode}, {item.load.label}, {item.figure})"
        keys.append((place, (item.load, item.mode, item.figure)))
        if len(item.repeats) != len(item.values):
            yield f"{place}.values has {len(item.values)}; expected {len(item.repeats)}, one a repeat"
        yield from twice("the repeat", [(f"{place}.repeats[{i}]", repeat) for i, repeat in enumerate(item.repeats)])
    yield from twice("the load, mode and figure", keys)
