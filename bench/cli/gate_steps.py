"""Steps that all uses of the gate share: measure, store the measurements, or report why no judgement is possible."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import msgspec

from bench.cli.selection import Choice
from bench.execute.pairs import PairEvent
from bench.execute.sweep import new_results
from bench.execute.tasks import HERE
from bench.judge import times
from bench.model import pairs as pair_store
from bench.model.config import Plan
from bench.model.environment import collect_code
from bench.model.paths import results_path
from bench.model.records import Results
from bench.model.verdict import Report, Subject, Use


def refused(use: Use, against: str | None, *reasons: str) -> Report:
    """A report that refuses to judge, with these reasons."""
    code = collect_code()
    here = times.subject(code, "this tree")
    before = Subject(against, None, None, "") if against else here
    return Report(use, before, here, {}, [], refusals=list(reasons))


def follow_pairs(chosen: Choice, run: pair_store.PairRun, events: Iterable[PairEvent]) -> None:
    """Follow a run of pairs to its end and store it."""
    from bench.show.gate import follow_pairs as follow

    path = chosen.record or results_path("pairs")
    try:
        follow(events)
    finally:  # keep what was measured, even if the run failed
        if any(point.rounds for point in run.points):
            pair_store.write(path, run)


def measured(chosen: Choice, plan: Plan, profile: str) -> Results:
    """Run a sweep of the plan, with progress on standard error."""
    from bench.show.gate import progress_console
    from bench.show.progress import follow

    counts = all(point.clock == "work" for point in plan.points)
    results = new_results(plan, msgspec.structs.replace(chosen.selection(profile), profile=profile))
    with tempfile.TemporaryDirectory(prefix="bench-gate-") as folder:
        keep = Path(folder) / "counts.json" if counts and chosen.record is None else chosen.record
        path = keep or results_path("gate")
        follow(chosen.machine.sweep(plan, results, path, None, HERE if counts else chosen.around), progress_console())
    return results
