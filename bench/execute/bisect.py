"""Finds the commit that changed the time, by halving with the gate's interleaved pairs. Yields events, prints nothing.

Only commits whose library differs from their parent's can be found. Each candidate is compared with the first commit of
the line, on fresh processes. The commit that is found is then compared with its own parent, and that comparison is the
proof.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from math import log

import msgspec

from bench.execute import interleaved as session
from bench.execute.commits import Libraries
from bench.execute.pairs import OpenSide, PairEvent
from bench.execute.stages import run_pairs
from bench.judge import times as judge
from bench.model.config import Config
from bench.model.history import Commit
from bench.model.pairs import PairPoint, PairRun
from bench.model.verdict import CannotJudge, Report, Use, Verdict


class Comparing(msgspec.Struct, frozen=True):
    """A pair is measured next; `candidates` commits are left."""

    before: Commit
    after: Commit
    candidates: int


class Compared(msgspec.Struct, frozen=True):
    """The result of a pair: the followed point's verdict, or why there is none. `changed`: it has the new level."""

    before: Commit
    after: Commit
    verdict: Verdict | None
    reason: str | None = None
    changed: bool | None = None


class Named(msgspec.Struct, frozen=True):
    """The end: if one suspect is left, it is the commit.

    `proof` compares it with its parent; `whole` is first against last.
    """

    suspects: tuple[Commit, ...]
    whole: Verdict
    proof: Verdict | None
    untried: tuple[Commit, ...] = ()

    @property
    def certain(self) -> bool:
        return len(self.suspects) == 1 and self.proof is not None and self.proof.confirmed


BisectEvent = Comparing | Compared | Named | PairEvent


@dataclass
class Bisection:
    """What to search for, and where. `line` begins with the last commit that is known to have the old level."""

    config: Config
    line: Sequence[Commit]
    points: Sequence[PairPoint]
    libraries: Libraries
    open_side: OpenSide
    seed: int
    runs: list[PairRun] = field(default_factory=list)  # every pair that was measured

    @property
    def candidates(self) -> list[int]:
        """The commits whose library differs from the commit before."""
        return [
            index
            for index in range(1, len(self.line))
            if self.line[index].library is None or self.line[index].library != self.line[index - 1].library
        ]


def bisect(job: Bisection) -> Generator[BisectEvent, None, None]:
    """Narrow the line down to one commit. Raises CannotJudge if its ends do not differ or cannot be measured."""
    candidates = job.candidates
    if not candidates:
        raise CannotJudge(f"no commit after {job.line[0].short} changes the library, so there is nothing to find")
    first, last = job.line[0], job.line[-1]
    yield Comparing(first, last, len(candidates))
    report = yield from pair(job, first, last, job.points, screen=True)
    whole = _largest(report)
    yield Compared(first, last, whole, changed=True)
    focus = [_unmeasured(point) for point in job.points if _same(point, whole)]
    assert whole.ratio is not None
    untried: list[Commit] = []
    low, high = 0, len(candidates) - 1  # the answer is one of candidates[low..high]
    while low < high:
        index = _middle(candidates[low:high], [job.line.index(commit) for commit in untried])
        if index is None:
            break
        middle = job.line[index]
        yield Comparing(first, middle, high - low + 1)
        compared = yield from _judged(job, first, middle, focus, log(whole.ratio))
        yield compared
        if compared.changed is None:
            untried.append(middle)
        elif compared.changed:
            high = candidates.index(index)
        else:
            low = candidates.index(index) + 1
    suspects = tuple(job.line[index] for index in candidates[low : high + 1])
    proof = None
    if len(suspects) == 1:
        parent = job.line[candidates[low] - 1]
        yield Comparing(parent, suspects[0], 1)
        compared = yield from _judged(job, parent, suspects[0], focus, log(whole.ratio))
        yield compared
        proof = compared.verdict
    yield Named(suspects, whole, proof, tuple(untried))


def _middle(candidates: Sequence[int], untried: Sequence[int]) -> int | None:
    """The candidate nearest to the middle that was not tried in vain; None if there is none."""
    left = [index for index in candidates if index not in untried]
    center = (len(candidates) - 1) / 2
    return min(left, key=lambda index: abs(candidates.index(index) - center), default=None)


def _judged(
    job: Bisection, before: Commit, after: Commit, focus: Sequence[PairPoint], effect: float
) -> Generator[PairEvent, None, Compared]:
    """The followed point on this pair: changed if the difference is more than half of what is looked for."""
    try:
        report = yield from pair(job, before, after, focus, screen=False)
    except CannotJudge as reason:
        return Compared(before, after, None, job.libraries.without_paths(str(reason)))
    (verdict,) = report.verdicts
    if verdict.ratio is None:
        return Compared(before, after, None, job.libraries.without_paths(verdict.reason))
    return Compared(before, after, verdict, changed=log(verdict.ratio) / effect > 0.5)


def pair(
    job: Bisection, before: Commit, after: Commit, points: Iterable[PairPoint], *, screen: bool
) -> Generator[PairEvent, None, Report]:
    """Measure both commits on these points in turns, and keep the run in `job.runs`. Raises CannotJudge."""
    sides = job.libraries.tree(before), job.libraries.tree(after)
    copies = [_unmeasured(point) for point in points]
    use: Use = "against-sglang" if sides[0].sglang else "against"
    run = session.pair_run(job.config, use, sides, copies, job.seed + len(job.runs), [])
    if not screen:  # half of a change may lie within the floor: all of its rounds are wanted
        run.gate = msgspec.structs.replace(run.gate, clear_confidence=1.0)
    job.runs.append(run)
    yield from run_pairs(run, sides, job.open_side, screen=screen)
    return judge.judge_pairs(run)


def _largest(report: Report) -> Verdict:
    """The confirmed change that is largest, a slowdown before any gain."""
    found = [verdict for verdict in report.verdicts if verdict.confirmed and verdict.ratio is not None]
    if not found:
        failed = [verdict.reason for verdict in report.verdicts if verdict.status == "error"]
        what = f"; {len(failed)} points failed, the first: {failed[0]}" if failed else ""
        raise CannotJudge(
            f"no point differs with certainty between {report.before.label} and {report.after.label}{what}"
        )
    return max(found, key=lambda verdict: (verdict.status == "slow", abs(log(verdict.ratio or 1.0))))


def _same(point: PairPoint, verdict: Verdict) -> bool:
    return (point.case, point.contender, point.clock) == (verdict.case, verdict.contender, verdict.clock)


def _unmeasured(point: PairPoint) -> PairPoint:
    return PairPoint(point.case, point.contender, point.clock)
