"""A line of history as it is shown and drawn: its series, their changes, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.judge.changes import Change
from bench.judge.moves import Gone, Move
from bench.judge.series import Era
from bench.model.case import ClockName
from bench.model.history import Commit


@dataclass(frozen=True)
class History:
    """`line`: the commits asked for, oldest first; `missing`: those of them without a measurement.

    changes  of the code, within an era, that still hold; gone: those that went away again
    moves    of a level from one era to the next, with their causes
    """

    clock: ClockName
    line: Sequence[Commit]
    eras: Sequence[Era]
    changes: Sequence[Change]
    missing: Sequence[Commit]
    moves: Sequence[Move] = ()
    gone: Sequence[Gone] = ()

    def of_commit(self) -> dict[str, list[Change]]:
        """The changes by the commit that they are attributed to, in the order of the line."""
        found: dict[str, list[Change]] = {}
        for change in self.changes:
            found.setdefault(change.commit.sha, []).append(change)
        shas = [commit.sha for commit in self.line]
        return dict(sorted(found.items(), key=lambda item: shas.index(item[0]) if item[0] in shas else len(shas)))

    def failures(self) -> dict[str, list[str]]:
        """Short sha to the reasons why points of the commit have no figure."""
        found: dict[str, list[str]] = {}
        for era in self.eras:
            for series in era.series:
                for item in series.observations:
                    if item.value is None and item.status != "skipped":
                        reasons = found.setdefault(item.commit.short, [])
                        text = f"{item.status}: {item.reason}"
                        if text not in reasons:
                            reasons.append(text)
        return found
