"""Compares figures of other tools, and follows them along commits.

Pure. A file is one process, so ratios have no interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.judge.changes import change_points
from bench.model.config import History as Settings
from bench.model.foreign import ForeignEntry, ForeignPoint, ForeignResults
from bench.model.history import Commit


@dataclass(frozen=True)
class ForeignRow:
    """A benchmark in one or both of two files. ratio is the second's time over the first's."""

    name: str
    machine: str
    before: ForeignPoint | None
    after: ForeignPoint | None

    @property
    def ratio(self) -> float | None:
        """None if a time is missing."""
        old, new = (point.value_us if point else None for point in (self.before, self.after))
        return new / old if old and new else None


@dataclass(frozen=True)
class ForeignSeries:
    """One benchmark on one machine: (commit, us) in order, and where its level changed, with the ratio."""

    name: str
    machine: str
    values: tuple[tuple[Commit, float], ...]
    changes: tuple[tuple[int, float], ...]


def compare(before: ForeignResults, after: ForeignResults) -> list[ForeignRow]:
    """Every benchmark of both files, the largest slowdown first.

    A benchmark of another machine is another benchmark.
    """
    old, new = ({(point.name, point.machine): point for point in one.points} for one in (before, after))
    rows = [
        ForeignRow(name, machine, old.get(key), new.get(key))
        for key in dict.fromkeys([*old, *new])
        for name, machine in [key]
    ]
    return sorted(rows, key=lambda row: -(row.ratio or 0.0))


def series(entries: Sequence[ForeignEntry], settings: Settings) -> list[ForeignSeries]:
    """The series of entries, in their order. Several entries of one commit become their geometric mean."""
    values: dict[tuple[str, str], dict[Commit, list[float]]] = {}
    for entry in entries:
        for point in entry.points:
            if point.value_us is not None:
                by_commit = values.setdefault((point.name, point.machine), {})
                by_commit.setdefault(entry.commit, []).append(point.value_us)
    found = []
    for (name, machine), by_commit in values.items():
        logs = np.array([float(np.mean(np.log(one))) for one in by_commit.values()])
        places = change_points(logs, settings)
        bounds = [0, *places, len(logs)]
        levels = [float(logs[bounds[i] : bounds[i + 1]].mean()) for i in range(len(bounds) - 1)]
        changes = tuple((place, float(np.exp(levels[i + 1] - levels[i]))) for i, place in enumerate(places))
        taken = tuple(zip(by_commit, np.exp(logs).tolist(), strict=True))
        found.append(ForeignSeries(name, machine, taken, changes))
    return found
