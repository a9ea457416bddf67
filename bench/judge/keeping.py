"""Checks that a candidate is judged by the rules of what it is compared with, because it must not set its own. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.judge.folding import folded
from bench.judge.times import Wanted
from bench.model import rules
from bench.model.config import PlannedPoint
from bench.model.pairs import PairPoint
from bench.model.records import Point, Results
from bench.model.rules import Rules
from bench.model.verdict import Report

Judged = Point | PlannedPoint | PairPoint
ALLOW = "--allow-changed-rules"


def rules_of(baseline: Results) -> Rules:
    """The rules under which a baseline was made."""
    return baseline.rules or rules.UNRECORDED


def left_out(points: Iterable[Point | PlannedPoint], was_wanted: Wanted, is_wanted: Wanted) -> int:
    """How many points the old rules judge and the present ones do not."""
    return sum(was_wanted(point) and not is_wanted(point) for point in points)


def changes(
    now: Rules, then: Rules, clocks: Sequence[str], not_judged: int, points: Iterable[Judged] = ()
) -> list[str]:
    """How the present rules are looser at these points. `not_judged`: points that only the old rules judge."""
    found = rules.looser(now, then, clocks)
    at_points = [
        (point.case.label, change) for point in points for change in rules.looser_at(now, then, point.case, point.clock)
    ]
    found += [f"{change} at {cases}" for cases, change in folded(at_points) if change not in found]
    if not_judged:
        judged = [(name, *(", ".join(getattr(of, name)) for of in (now, then))) for name in ("contenders", "clocks")]
        why = [f"{name} are {mine}, they were {theirs}" for name, mine, theirs in judged if mine != theirs]
        found.insert(0, f"{not_judged} points are not judged: {'; '.join(why) or 'the profile has lost them'}")
    return found


def hold(report: Report, changed: list[str], *, allowed: bool) -> Report:
    """Record changed rules in a report. Unless they are allowed, nothing in the report can be trusted."""
    report.changed_rules, report.rules_allowed = changed, allowed
    if changed and not allowed:
        report.refusals.insert(0, f"{said(report)}; if that is meant: {ALLOW}")
    return report


def said(report: Report) -> str:
    """The first line of a report if its rules have changed; empty if not."""
    if not report.changed_rules:
        return ""
    allowed = f" (allowed by {ALLOW})" if report.rules_allowed else ""
    return f"looser rules than those it is judged against{allowed}: {'; '.join(report.changed_rules)}"
