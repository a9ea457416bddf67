"""`gate` of the command line: the steps are in bench/execute/interleaved.py, the decisions in bench/times."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from bench.cli import guards, served_file
from bench.cli.options import (
    AxisOption,
    CaseOption,
    ClockOption,
    ConfigOption,
    ContenderOption,
    FormatOption,
    ProfileOption,
    SeedOption,
)
from bench.cli.selection import GATED, Choice
from bench.execute import interleaved
from bench.execute.interleaved import Machine
from bench.execute.pairs import PairEvent
from bench.execute.sweep import new_results
from bench.judge import comparable, keeping, times
from bench.judge.work import judge_work
from bench.model import config as configuration
from bench.model import pairs as pair_store
from bench.model import store
from bench.model.config import ConfigError, Plan, PlannedPoint
from bench.model.environment import collect_code
from bench.model.locks import only_writer
from bench.model.pairs import PairPoint
from bench.model.paths import BASELINES, results_path, shown
from bench.model.records import Point, Results
from bench.model.verdict import CannotJudge, Exit, GateError, Report, Subject, Use

WORK_BASELINE = BASELINES / "work.json"
RENEW_WORK = "python -m bench baseline --clock work"


def gate(
    context: typer.Context,
    result: Annotated[Path | None, typer.Argument(help="Results to judge; default: measure now.")] = None,
    baseline: Annotated[Path | None, typer.Option("--baseline", help="Judge against this stored baseline.")] = None,
    against: Annotated[str | None, typer.Option("--against", metavar="REV", help="Interleave with a revision.")] = None,
    self_check: Annotated[bool, typer.Option("--self-check", help="Interleave this tree with itself.")] = False,
    profile: ProfileOption = None,
    axis: AxisOption = [],
    clock: ClockOption = [],
    contender: ContenderOption = [],
    case: CaseOption = [],
    config: ConfigOption = configuration.DEFAULT_PATH,
    format: FormatOption = [],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where the raw record goes.")] = None,
    counts_only: Annotated[bool, typer.Option("--counts-only", help="Work: leave compiled figures out.")] = False,
    seed: SeedOption = None,
    allow_changed_rules: Annotated[
        bool, typer.Option("--allow-changed-rules", help="Judge although bench.toml's rules have become looser.")
    ] = False,
) -> None:
    """Decide whether the kernel became slower. Exit: 0 no, 1 yes, 2 wrong usage, 3 cannot times."""
    from bench.show.gate import emit, parse_formats

    if baseline is not None and result is not None and any(map(served_file.is_one, (baseline, result))):
        served_file.gate(baseline, result, case, contender, clock, format, configuration.load(config).gate)
        return
    formats = parse_formats(format)
    use = _use(baseline, against, self_check, clock, result)
    chosen = Choice(
        configuration.load(config),
        context.obj or Machine(),
        profile,
        axis,
        clock,
        contender,
        case,
        output,
        counts_only,
        seed,
        allow_changed_rules,
    )
    with only_writer(output):
        report = _report(chosen, use, baseline, against, result)
    emit(report, formats)
    if report.exit_code is not Exit.PASS:
        raise typer.Exit(int(report.exit_code))


def _report(chosen: Choice, use: Use, baseline: Path | None, against: str | None, result: Path | None) -> Report:
    try:
        if use == "work":
            return _work(chosen, baseline, result)
        if use == "baseline":
            assert baseline is not None
            return _baseline(chosen, baseline, result)
        return _pairs(chosen, use, against)
    except CannotJudge as reason:
        return _refused(use, against, str(reason))


def _use(
    baseline: Path | None, against: str | None, self_check: bool, clocks: Sequence[str], result: Path | None
) -> Use:
    guards.refuse_unknown_clocks(clocks, GATED)
    if (baseline is not None) + (against is not None) + self_check > 1:
        raise GateError("--baseline, --against and --self-check exclude each other; expected one of them")
    if "work" in clocks:
        if against is not None or self_check or len(clocks) > 1:
            raise GateError(
                "--clock work compares counts with a stored baseline; expected no other clock, at most FILE"
            )
        return "work"
    if baseline is None and result is not None:
        raise GateError(f"{result}: a RESULT is judged against a baseline; expected --baseline FILE")
    if baseline is None and against is None and not self_check:
        raise GateError("expected --baseline FILE, --against REV, --self-check or --clock work")
    return "baseline" if baseline is not None else "against" if against is not None else "self-check"


def _refused(use: Use, against: str | None, *reasons: str) -> Report:
    code = collect_code()
    here = times.subject(code, "this tree")
    before = Subject(against, None, None, "") if against else here
    return Report(use, before, here, {}, [], refusals=list(reasons))


def _pairs(chosen: Choice, use: Use, against: str | None) -> Report:
    profile = chosen.config.gate.profile
    points = interleaved.pair_points(chosen.plan(profile, chosen.gated_clocks).points)
    changed = _changed_since(chosen, chosen.machine.commit_of(against), points) if against is not None else []
    if changed and not chosen.allow_changed_rules:
        return keeping.hold(_refused(use, against), changed, allowed=False)
    chosen.machine.require_gpu()
    with chosen.machine.open_trees(against, None) as sides:
        seed = chosen.seed or chosen.machine.layout_seed()
        run = interleaved.pair_run(chosen.config, use, sides, points, seed, chosen.options(profile))
        _follow_pairs(chosen, run, interleaved.run_pairs(run, sides, chosen.machine.open_side))
    return keeping.hold(times.judge_pairs(run), changed, allowed=True)


def _changed_since(chosen: Choice, sha: str, points: Sequence[PairPoint]) -> list[str]:
    """In what this bench.toml lets more pass than that of a commit."""
    before = chosen.machine.config_at(sha, chosen.config)
    if before is None:
        return []
    then = chosen.under(before)
    try:
        planned = then.plan(before.gate.profile, then.gated_clocks).points
    except ConfigError:  # what was stated is newer than the commit
        planned = ()
    kept = {(point.case, point.contender, point.clock) for point in points}
    lost = sum((point.case, point.contender, point.clock) not in kept for point in planned)
    return keeping.changes(chosen.rules, then.rules, chosen.gated_clocks, lost)


def _follow_pairs(chosen: Choice, run: pair_store.PairRun, events: Iterable[PairEvent]) -> None:
    from bench.show.gate import follow_pairs

    path = chosen.record or results_path("pairs")
    try:
        follow_pairs(events)
    finally:  # what was measured is kept, whatever became of the run
        if any(point.rounds for point in run.points):
            pair_store.write(path, run)


def _work(chosen: Choice, baseline: Path | None, result: Path | None) -> Report:
    path = baseline or WORK_BASELINE
    if baseline is None and not path.exists():
        raise CannotJudge(f"{shown(path)}: no baseline of counts; make one with: {RENEW_WORK}")
    before = store.read(path)
    profile = chosen.config.gate.work_profile
    wanted, was_wanted = chosen.of_baseline(before, profile, work=True)
    changed = keeping.changes(
        chosen.rules, keeping.rules_of(before), ["work"], keeping.left_out(before.points, was_wanted, wanted)
    )
    after = store.read(result) if result else measured(chosen, chosen.plan(profile, ["work"]), profile)
    match = comparable.match(before.points, after.points, wanted)
    report = judge_work(before, after, chosen.config.gate, match, counts_only=chosen.counts_only, renew=RENEW_WORK)
    report.selection = chosen.options(profile)
    return keeping.hold(report, changed, allowed=chosen.allow_changed_rules)


def _baseline(chosen: Choice, path: Path, result: Path | None) -> Report:
    before = store.read(path)
    if before.points and all(point.clock == "work" for point in before.points):
        return _work(chosen, path, result)
    wanted, was_wanted = chosen.of_baseline(before, chosen.config.gate.profile, work=False)
    then, clocks = keeping.rules_of(before), [*chosen.gated_clocks]
    changed = keeping.changes(chosen.rules, then, clocks, keeping.left_out(before.points, was_wanted, wanted))
    if result is not None:
        after = store.read(result)
        match = comparable.match(before.points, after.points, wanted)
        report = times.judge_baseline(before, after, chosen.config.gate, match)
    elif changed and not chosen.allow_changed_rules:
        report = _refused("baseline", None)
    else:
        report = _measured_against(chosen, before, [point for point in before.points if wanted(point)], wanted)
    return keeping.hold(report, changed, allowed=chosen.allow_changed_rules)


def _measured_against(chosen: Choice, before: Results, points: Sequence[Point], wanted: times.Wanted) -> Report:
    """Measure, look, and measure the flagged points again: interleaved where the baseline's commit is at hand."""
    gate, machine = chosen.config.gate, chosen.machine
    code = collect_code()
    if code.instrument != before.code.instrument:
        raise CannotJudge(comparable.version_refusal(before.code, code))
    machine.require_gpu()
    planned = [comparable.planned(point) for point in points if point.status == "ok"]
    if not planned:
        raise CannotJudge("the baseline has no point that this gate judges")
    plan = interleaved.baseline_plan(chosen.config, before, planned, fresh=False)
    after = measured(chosen, plan, before.run.selection.profile)
    match = comparable.match(points, after.points, wanted)
    flagged = times.flagged_points(before, after, gate, match)
    if not flagged or times.refusals(before, after, gate, match):
        return times.judge_baseline(before, after, gate, match)
    again = [comparable.planned(point) for point in flagged]
    if machine.knows_commit(before.code.sha):
        report = times.judge_baseline(before, after, gate, match)
        times.merge_pairs(report, _interleaved(chosen, before, again))
        return report
    fresh_plan = interleaved.baseline_plan(chosen.config, before, again, fresh=True)
    fresh = measured(chosen, fresh_plan, before.run.selection.profile)
    return times.judge_baseline(before, after, gate, match, fresh)


def _interleaved(chosen: Choice, before: Results, points: Sequence[PlannedPoint]) -> Report:
    with chosen.machine.open_trees(before.code.sha, None) as sides:
        seed = chosen.seed or chosen.machine.layout_seed()
        options = times.selection_options(before)
        run = interleaved.pair_run(chosen.config, "baseline", sides, interleaved.pair_points(points), seed, options)
        events = interleaved.run_pairs(run, sides, chosen.machine.open_side, screen=False)
        _follow_pairs(chosen, run, events)
    return times.judge_pairs(run)


def measured(chosen: Choice, plan: Plan, profile: str) -> Results:
    """A sweep of the plan, followed on standard error."""
    from bench.show.gate import progress_console
    from bench.show.progress import follow

    counts = all(point.clock == "work" for point in plan.points)
    results = new_results(plan, msgspec.structs.replace(chosen.selection(profile), profile=profile))
    with tempfile.TemporaryDirectory(prefix="bench-gate-") as folder:
        keep = Path(folder) / "counts.json" if counts and chosen.record is None else chosen.record
        path = keep or results_path("gate")
        follow(chosen.machine.sweep(plan, results, path), progress_console())
    return results


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(gate)
