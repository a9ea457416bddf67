"""Which files of timed points may become a baseline. Pure."""

from __future__ import annotations

from math import exp

from bench.judge import comparable
from bench.judge.estimate import log_sd
from bench.judge.folding import folded
from bench.judge.times import TIMED, log_values
from bench.model.config import Gate
from bench.model.records import Point, Results


def baseline_faults(results: Results, gate: Gate) -> list[str]:
    """Why a file of timed points cannot be a baseline: failed points, too few rounds, unstable points, throttling."""
    failed = [(_name(point), reason) for point in results.points if (reason := _failure(point))]
    faults = [f"{names} {reason}" for names, reason in folded(failed)]
    timed = [point for point in results.points if point.status == "ok" and point.clock in TIMED]
    for point in timed:
        processes = {item.process for item in point.rounds}
        if len(point.rounds) < gate.baseline_rounds or len(processes) < gate.baseline_processes:
            faults.append(
                f"{_name(point)} has {len(point.rounds)} rounds of {len(processes)} processes; "
                f"expected {gate.baseline_rounds} of {gate.baseline_processes} or more"
            )
    faults += [instability(point, gate) for point in timed if is_unstable(point, gate)]
    if reasons := comparable.throttled(timed):
        faults.append(f"the GPU lowered its clock while it was measured: {', '.join(reasons)}")
    return faults or ([] if results.points else ["it has no point"])


def _failure(point: Point) -> str | None:
    return f"is {point.status}: {point.reason}" if point.status != "ok" else comparable.unsound(point)


def is_unstable(point: Point, gate: Gate) -> bool:
    """Whether the processes of a timed point differ by more than a baseline allows."""
    return _spread_pct(point) > gate.unstable_pct


def instability(point: Point, gate: Gate) -> str:
    """How much the processes differ, in words."""
    limit = f"at most {gate.unstable_pct:g} % allowed"
    return f"{_name(point)} is unstable: {_spread_pct(point):.1f} % between its processes, {limit}"


def _spread_pct(point: Point) -> float:
    return 100 * (log_sd([exp(value) for value in log_values(point)]) or 0.0)


def _name(point: Point) -> str:
    return f"{point.contender}, {point.clock}, {point.case.label}"


def work_faults(results: Results) -> list[str]:
    """Faults: counted points without compiled figures, which a baseline needs."""
    return [
        f"{point.contender}, {point.case.label} has no compiled figures: {point.work.compiled_reason}"
        for point in results.points
        if point.work is not None and not point.work.compiled
    ]
