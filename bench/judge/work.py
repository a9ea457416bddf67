"""The work gate: compares exact counts and compiled figures with a baseline. Needs no GPU and has no noise. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import msgspec

from bench.judge import comparable
from bench.judge.comparable import Match
from bench.judge.occupancy import least_resident_warps
from bench.judge.times import selection_options, subject
from bench.model.config import Figure, Gate
from bench.model.records import CompiledFigures, Point, Results, Work, WorkCounts
from bench.model.verdict import Change, Report, Verdict, VerdictStatus

FIGURES: tuple[Figure, ...] = get_args(Figure)
COUNTED = WorkCounts.__struct_fields__
MORE_IS_BETTER = ("widest_load_bits", "widest_store_bits", "resident_warps")
COUNTS_ONLY = "compiled figures not compared (--counts-only): registers, spills, widths, warps and others are unjudged"


def judge_work(before: Results, after: Results, gate: Gate, match: Match, *, counts_only: bool, renew: str) -> Report:
    """Compare every figure of every point. `renew` is the command that renews the baseline."""
    report = Report(
        use="work",
        before=subject(before.code, "baseline"),
        after=subject(after.code, "result"),
        identity=after.env.identity if after.env else {},
        verdicts=[],
        refusals=[f"{reason}; if that is meant: {renew}" for reason in _refusals(before, after, match, counts_only)],
        notes=match.notes + ([COUNTS_ONLY] if counts_only else _not_compared(match, counts_only)),
        selection=selection_options(after),
        started_utc=after.run.started_utc,
        duration_s=after.run.duration_s,
        rules=gate.rules,
    )
    for point in match.missing:
        report.verdicts.append(_verdict(point, "error", f"in the baseline, but not counted; if that is meant: {renew}"))
    for point in match.new:
        report.verdicts.append(_verdict(point, "error", f"not in the baseline; if that is meant: {renew}"))
    for old, new in match.both:
        report.verdicts.append(_judge_point(old, new, gate, counts_only))
    return report


def _refusals(before: Results, after: Results, match: Match, counts_only: bool) -> list[str]:
    found = comparable.instrument_refusals(before, after) + match.repeated
    if not match.both:
        found.append("no point of the baseline was counted")
    return found + comparable.counting_refusals(before.env, after.env, match.both, counts_only=counts_only)


def _judge_point(old: Point, new: Point, gate: Gate, counts_only: bool) -> Verdict:
    if old.status != "ok":
        return _verdict(old, "skipped", f"{old.status} in the baseline: {old.reason}")
    if new.status != "ok":
        return _verdict(old, "error", f"{new.status}: {new.reason}")
    for name, point in (("baseline", old), ("result", new)):
        if reason := comparable.unsound(point):
            return _verdict(old, "error", f"the {name}'s point cannot be used: {reason}")
    assert old.work and new.work  # else unsound
    for name, work in (("baseline", old.work), ("result", new.work)):
        if not work.compiled and not counts_only:
            return _verdict(old, "error", f"the {name} has no compiled figures: {work.compiled_reason}")
    before, after = figures(old.work, counts_only), figures(new.work, counts_only)
    if gone := before.keys() - after.keys():
        return _verdict(old, "error", f"the baseline has {', '.join(sorted(gone))}, the result does not")
    return _compared(old, compare_work(before, after), gate)


def _compared(point: Point, changes: list[Change], gate: Gate) -> Verdict:
    worse = [change for change in changes if change.worse and not _tolerated(change, gate.work_tolerance_pct)]
    better = [change for change in changes if not change.worse]
    if worse:
        status: VerdictStatus = "slow"
        reason = "worse: " + ", ".join(change.figure for change in worse)
    elif better:
        status, reason = "fast", "better: " + ", ".join(change.figure for change in better)
    else:
        status, reason = "pass", "within its tolerance" if changes else "identical"
    return msgspec.structs.replace(_verdict(point, status, reason), confirmed=status != "pass", changes=changes)


def _not_compared(match: Match, counts_only: bool) -> list[str]:
    """Figures that the baseline is too old to have."""
    missing = {
        name
        for old, new in match.both
        if old.work and new.work and old.work.compiled and new.work.compiled
        for name in figures(new.work, counts_only).keys() - figures(old.work, counts_only).keys()
    }
    return [f"not in the baseline, so not compared: {', '.join(sorted(missing))}"] if missing else []


def figures(work: Work, counts_only: bool) -> dict[str, int]:
    """All figures of a point. Of several kernels the worst counts, except instructions, which are added up.

    resident_warps, of the launch that fills the GPU least, is absent where a record lists no launches.
    """
    found = {name: int(getattr(work.counts, name)) for name in COUNTED}
    if counts_only:
        return found
    resident = least_resident_warps(work)
    return found | _compiled(work.compiled) | ({} if resident is None else {"resident_warps": resident})


def _compiled(kernels: Sequence[CompiledFigures]) -> dict[str, int]:
    loads = [kernel.widest_load_bits for kernel in kernels if kernel.widest_load_bits] or [0]
    stores = [kernel.widest_store_bits for kernel in kernels if kernel.widest_store_bits] or [0]
    return {
        "registers": max(kernel.registers for kernel in kernels),
        "spill_bytes": max(kernel.spill_bytes for kernel in kernels),
        "shared_bytes": max(kernel.shared_bytes for kernel in kernels),
        "instructions": sum(kernel.instructions for kernel in kernels),
        "widest_load_bits": min(loads),
        "widest_store_bits": min(stores),
        "num_warps": max(kernel.num_warps for kernel in kernels),
    }


def compare_work(before: Mapping[str, int], after: Mapping[str, int]) -> list[Change]:
    """Each figure that differs."""
    changes = []
    for name in FIGURES:
        old, new = before.get(name), after.get(name)
        if old is not None and new is not None and old != new:
            changes.append(Change(name, old, new, worse=(new < old) if name in MORE_IS_BETTER else (new > old)))
    return changes


def _tolerated(change: Change, tolerance_pct: Mapping[Figure, float]) -> bool:
    allowed = next((value for name, value in tolerance_pct.items() if name == change.figure), 0.0)
    return abs(change.after - change.before) <= change.before * allowed / 100


def _verdict(point: Point, status: VerdictStatus, reason: str) -> Verdict:
    return Verdict(point.case, point.contender, point.clock, status, reason)
