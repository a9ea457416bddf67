"""The work gate: exact counts and compiled figures against a baseline, no GPU and no noise. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import msgspec

from bench.config import Figure, Gate
from bench.gate import comparable
from bench.gate.comparable import Match
from bench.gate.judge import selection_options, subject
from bench.gate.verdict import Change, Report, Verdict, VerdictStatus
from bench.results import CompiledFigures, Point, Results, Work, WorkCounts

FIGURES: tuple[Figure, ...] = get_args(Figure)
COUNTED = WorkCounts.__struct_fields__
MORE_IS_BETTER = ("widest_load_bits", "widest_store_bits")
COUNTS_ONLY = "compiled figures not compared (--counts-only): registers, spills, widths and instructions are unjudged"


def judge_work(before: Results, after: Results, gate: Gate, match: Match, *, counts_only: bool, renew: str) -> Report:
    """Compare every figure of every point. `renew` is the command that makes the baseline anew."""
    report = Report(
        use="work",
        before=subject(before.code, "baseline"),
        after=subject(after.code, "result"),
        identity=after.env.identity if after.env else {},
        verdicts=[],
        refusals=[f"{reason}; if that is meant: {renew}" for reason in _refusals(before, after, match, counts_only)],
        notes=[COUNTS_ONLY] if counts_only else [],
        selection=selection_options(after),
        started_utc=after.run.started_utc,
        duration_s=after.run.duration_s,
    )
    for point in match.missing:
        report.verdicts.append(_verdict(point, "error", f"in the baseline, but not counted; if that is meant: {renew}"))
    for point in match.new:
        report.verdicts.append(_verdict(point, "error", f"not in the baseline; if that is meant: {renew}"))
    for old, new in match.both:
        report.verdicts.append(_judge_point(old, new, gate, counts_only))
    return report


def _refusals(before: Results, after: Results, match: Match, counts_only: bool) -> list[str]:
    found = comparable.instrument_refusals(before, after)
    if not match.both:
        found.append("no point of the baseline was counted")
    old, new = (side.env.identity.get("triton") if side.env else None for side in (before, after))
    if old != new and not counts_only:
        found.append(f"Triton is {new}, the baseline's is {old}: no compiled figure can be compared, --counts-only can")
    return found


def _judge_point(old: Point, new: Point, gate: Gate, counts_only: bool) -> Verdict:
    if old.work is None or old.status != "ok":
        return _verdict(old, "skipped", f"{old.status} in the baseline: {old.reason}")
    if new.work is None or new.status != "ok":
        return _verdict(old, "error", f"{new.status}: {new.reason}")
    for name, work in (("baseline", old.work), ("result", new.work)):
        if not work.compiled and not counts_only:
            return _verdict(old, "error", f"the {name} has no compiled figures: {work.compiled_reason}")
    changes = compare_work(figures(old.work, counts_only), figures(new.work, counts_only))
    worse = [change for change in changes if change.worse and not _tolerated(change, gate.work_tolerance_pct)]
    if worse:
        status: VerdictStatus = "slow"
        reason = "more work: " + ", ".join(change.figure for change in worse)
    elif any(not change.worse for change in changes):
        status, reason = "fast", "less work: " + ", ".join(item.figure for item in changes if not item.worse)
    else:
        status, reason = "pass", "within its tolerance" if changes else "identical"
    return msgspec.structs.replace(_verdict(old, status, reason), confirmed=status != "pass", changes=changes)


def figures(work: Work, counts_only: bool) -> dict[str, int]:
    """All figures of a point, those of several kernels as one: the worst, except instructions, which add up."""
    found = {name: int(getattr(work.counts, name)) for name in COUNTED}
    return found if counts_only else found | _compiled(work.compiled)


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
