"""The figures of a gate run that is repeated to see how often the gate errs."""

from __future__ import annotations

import msgspec

from bench.model.pairs import PairRun
from bench.model.verdict import Report


class Repeat(msgspec.Struct):
    """One run: its exit code, verdicts by status, and what it cost."""

    file: str
    exit_code: int
    verdicts: dict[str, int]
    points: int
    duration_s: float
    start_s: float
    open_s: float
    seconds_a_point: float
    found: dict[str, list[int]]  # planted share, as achieved -> [points found, points planted]
    worst_ratio: float | None
    largest_detectable: float | None
    median_detectable: float | None


def repeat_of(file: str, run: PairRun, report: Report) -> Repeat:
    """The figures of one run."""
    found: dict[str, list[int]] = {}
    for item in report.verdicts:
        if item.extra_share:
            tally = found.setdefault(f"{item.extra_share:g}", [0, 0])
            tally[0] += item.status == "slow" and item.confirmed
            tally[1] += item.status != "skipped"
    ratios = [item.ratio for item in report.verdicts if item.ratio is not None]
    seen = sorted(item.detectable for item in report.verdicts if item.detectable is not None)
    return Repeat(
        file=file,
        exit_code=int(report.exit_code),
        verdicts=report.counts(),
        points=len(run.points),
        duration_s=run.duration_s,
        start_s=run.start_s,
        open_s=run.open_s,
        seconds_a_point=run.duration_s / len(run.points),
        found=found,
        worst_ratio=max(ratios, default=None),
        largest_detectable=seen[-1] if seen else None,
        median_detectable=seen[len(seen) // 2] if seen else None,
    )
