"""Why a level moved (code, measuring method, toolchain or hardware), and which changes were undone later. Pure.

Within an era only the code differs, so a change there is the code's. Between two eras, a commit that both measured
shows what the other causes did. Without such a commit, the code is among the causes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log

from bench.judge.changes import Change
from bench.judge.series import TIME, Cause, Era, Observation, Series
from bench.judge.statistics import log_limit
from bench.judge.work import MORE_IS_BETTER
from bench.model.config import History as Settings


@dataclass(frozen=True)
class Move:
    """A level of the new era over that of the one before.

    Both are of the same commit, or `causes` includes the code.
    """

    series: Series
    before: Observation
    after: Observation
    causes: tuple[Cause, ...]

    @property
    def ratio(self) -> float:
        """New over old; infinite if a count was 0 before."""
        assert self.before.value and self.after.value
        return self.after.value.value / self.before.value.value if self.before.value.value else float("inf")

    @property
    def worse(self) -> bool:
        """Whether the figure got worse."""
        return (self.ratio < 1) == (self.series.figure in MORE_IS_BETTER)


@dataclass(frozen=True)
class Gone:
    """A change whose level later came back. `back` is the change that undid it."""

    change: Change
    back: Change


def moves(eras: Sequence[Era], settings: Settings) -> list[Move]:
    """The levels that moved from one era to the next, in order."""
    found = []
    for before, after in pairwise(eras):
        old = {(one.case, one.contender, one.clock, one.figure): one for one in before.series}
        for series in after.series:
            was = old.get((series.case, series.contender, series.clock, series.figure))
            move = _move(was, series, after.causes) if was is not None else None
            if move is not None and _moved(move, settings):
                found.append(move)
    return found


def _move(was: Series, series: Series, causes: tuple[Cause, ...]) -> Move | None:
    """At the last commit that both measured, else from the last of the one to the first of the other."""
    old, new = ({item.commit.sha: item for item in one.measured} for one in (was, series))
    if not old or not new:
        return None
    shared = [sha for sha in old if sha in new]
    if shared:
        return Move(series, old[shared[-1]], new[shared[-1]], causes)
    before, after = was.measured[-1], series.measured[0]
    same = before.commit.library is not None and before.commit.library == after.commit.library
    code = Cause("code", f"{before.commit.short} -> {after.commit.short}")
    return Move(series, before, after, causes if same else (code, *causes))


def _moved(move: Move, settings: Settings) -> bool:
    """Counts: any difference. Times: past `least_pct`, and apart by more than their intervals, where there are any."""
    old, new = move.before.value, move.after.value
    assert old and new
    if move.series.figure != TIME:
        return old.value != new.value
    if abs(log(move.ratio)) <= log_limit(settings.least_pct):
        return False
    if old.low is None or old.high is None or new.low is None or new.high is None:
        return True
    return new.low > old.high or new.high < old.low


def standing(changes: Sequence[Change], settings: Settings) -> tuple[list[Change], list[Gone]]:
    """The changes of one series that still hold at its end, and those that were undone, with the change that did it."""
    kept: list[Change] = []
    gone: list[Gone] = []
    for change in changes:
        undone = next(
            (place for place, one in enumerate(kept) if _same_level(one.old, change.new, one, settings)), None
        )
        if undone is None:
            kept.append(change)
        else:
            gone += [Gone(one, change) for one in kept[undone:]]
            del kept[undone:]
    return kept, gone


def _same_level(one: float, other: float, change: Change, settings: Settings) -> bool:
    if change.series.figure != TIME or one <= 0 or other <= 0:
        return one == other
    return abs(log(one / other)) <= log_limit(settings.least_pct)
