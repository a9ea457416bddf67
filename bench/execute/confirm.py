"""Confirms the changes of a history by running both commits in turns, within a budget of GPU time.

Yields events, prints nothing. The gate's pairs are used. The commits of a pair are measured once for all points that
changed between them, and the largest change comes first. A pair begins only if one as long as the last still fits into
the budget.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from math import log

import msgspec

from bench.execute.bisect import Bisection, pair
from bench.execute.pairs import PairEvent
from bench.judge.changes import Change
from bench.model.history import Commit
from bench.model.pairs import PairPoint
from bench.model.verdict import CannotJudge, Verdict


class Confirming(msgspec.Struct, frozen=True):
    """The commits around some changes are measured next. `left_s` of the budget is left."""

    before: Commit
    after: Commit
    points: int
    left_s: float


@dataclass(frozen=True)
class Confirmed:
    """The result for a change: the verdict on its point, or why there is none."""

    change: Change
    verdict: Verdict | None
    reason: str | None = None

    @property
    def holds(self) -> bool:
        """Whether the pairs show, with certainty, a change in the same direction and of at least half its size."""
        if self.verdict is None or self.verdict.ratio is None or not self.verdict.confirmed:
            return False
        return log(self.verdict.ratio) / log(self.change.ratio) > 0.5


@dataclass(frozen=True)
class OutOfBudget:
    """These changes were not measured, because the budget is used up."""

    left: tuple[Change, ...]
    spent_s: float


ConfirmEvent = Confirming | Confirmed | OutOfBudget | PairEvent


def confirm(job: Bisection, changes: Sequence[Change], budget_s: float) -> Generator[ConfirmEvent, None, None]:
    """Measure the changes of times, one pair of commits after another."""
    groups: dict[tuple[str, str], list[Change]] = {}
    for change in sorted(changes, key=lambda one: -abs(log(one.ratio))):
        groups.setdefault((change.before.sha, change.commit.sha), []).append(change)
    todo, spent_s, last_s = list(groups.values()), 0.0, 0.0
    while todo:
        if spent_s >= budget_s or spent_s + last_s > budget_s:
            yield OutOfBudget(tuple(change for group in todo for change in group), spent_s)
            return
        group = todo.pop(0)
        yield Confirming(group[0].before, group[0].commit, len(group), budget_s - spent_s)
        runs = len(job.runs)
        yield from _tried(job, group)
        last_s = sum(run.duration_s for run in job.runs[runs:])
        spent_s += last_s


def _tried(job: Bisection, group: Sequence[Change]) -> Generator[ConfirmEvent, None, None]:
    points = [PairPoint(one.series.case, one.series.contender, one.series.clock) for one in group]
    try:
        report = yield from pair(job, group[0].before, group[0].commit, points, screen=False)
    except CannotJudge as reason:
        for change in group:
            yield Confirmed(change, None, job.libraries.without_paths(str(reason)))
        return
    verdicts = {(one.case, one.contender, one.clock): one for one in report.verdicts}
    for change in group:
        verdict = verdicts[change.series.case, change.series.contender, change.series.clock]
        reason_of = None if verdict.ratio is not None else job.libraries.without_paths(verdict.reason)
        yield Confirmed(change, verdict if verdict.ratio is not None else None, reason_of)
