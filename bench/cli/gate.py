"""The verb `gate`. Its steps are in bench/execute/interleaved.py, its decisions in bench/judge/times.py."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from bench.cli import gate_sglang, guards, served_file
from bench.cli.gate_steps import follow_pairs, measured, refused
from bench.cli.options import (
    AcceptedOption,
    AxisOption,
    CaseOption,
    ClockOption,
    ConfigOption,
    ContenderFileOption,
    ContenderOption,
    FormatOption,
    GpusOption,
    OneAtATimeOption,
    ProfileOption,
    SeedOption,
    SubjectOption,
)
from bench.cli.selection import GATED, Choice, judging
from bench.execute import interleaved
from bench.execute.interleaved import Machine
from bench.execute.stages import run_pairs
from bench.execute.tasks import Around
from bench.judge import comparable, keeping, times
from bench.judge.accepted import accept
from bench.judge.work import judge_work
from bench.model import accepted as accepted_changes
from bench.model import config as configuration
from bench.model import outside, store
from bench.model.config import ConfigError, Plan, PlannedPoint
from bench.model.environment import collect_code, package_version
from bench.model.locks import only_writer
from bench.model.pairs import PairPoint
from bench.model.paths import BASELINES, shown
from bench.model.records import Point, Results
from bench.model.verdict import CannotJudge, Exit, GateError, Report, Use

INSTEAD = {
    "work": "a renewed baseline for counts that are meant to change",
    "self-check": "--accepted with two commits",
}
RENEW_WORK = "python -m bench baseline --clock work"


def gate(
    context: typer.Context,
    result: Annotated[Path | None, typer.Argument(help="Results to judge; default: measure now.")] = None,
    baseline: Annotated[Path | None, typer.Option("--baseline", help="Compare with this stored baseline.")] = None,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="REV", help="Compare with this git revision, measuring both in turns."),
    ] = None,
    against_sglang: Annotated[
        str | None,
        typer.Option(
            "--against-sglang",
            metavar="V",
            help="Judge SGLang's kernels: compare with this version or wheel of SGLang.",
        ),
    ] = None,
    sglang: Annotated[
        str | None,
        typer.Option(
            "--sglang",
            metavar="V",
            help="With --against-sglang: judge this version or wheel instead of the installed one.",
        ),
    ] = None,
    self_check: Annotated[
        bool, typer.Option("--self-check", help="Compare this tree with itself, measuring both in turns.")
    ] = False,
    profile: ProfileOption = None,
    axis: AxisOption = [],
    clock: ClockOption = [],
    contender: ContenderOption = [],
    contender_file: ContenderFileOption = [],
    subject: SubjectOption = [],
    case: CaseOption = [],
    config: ConfigOption = configuration.DEFAULT_PATH,
    format: FormatOption = [],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File for the raw measurements.")] = None,
    counts_only: Annotated[
        bool, typer.Option("--counts-only", help="With --clock work: compare counts only, not the compiled kernels.")
    ] = False,
    seed: SeedOption = None,
    allow_changed_rules: Annotated[
        bool, typer.Option("--allow-changed-rules", help="Judge even if the rules in bench.toml have become looser.")
    ] = False,
    accepted: AcceptedOption = None,
    partial: Annotated[
        bool,
        typer.Option("--partial", help="Judge only the points that the baseline has, and report how many it lacks."),
    ] = False,
    gpus: GpusOption = None,
    one_at_a_time: OneAtATimeOption = False,
) -> None:
    """Decide whether a kernel became slower. Exit status: 0 no, 1 yes, 2 wrong usage, 3 cannot tell."""
    from bench.show.gate_formats import emit, parse_formats

    if baseline is not None and result is not None and any(map(served_file.says_so, (baseline, result))):
        served_file.gate(baseline, result, case, contender, clock, format, configuration.load(config).gate)
        return
    formats = parse_formats(format)
    if against_sglang is None and sglang is not None:
        raise GateError(f"--sglang {sglang}: expected --against-sglang V with it, the version to compare with")
    use = _use(baseline, against, self_check, clock, result, against_sglang)
    subject = subject or (list(gate_sglang.CONTENDERS) if against_sglang else [])
    chosen = Choice(
        config=judging(configuration.load(config), subject),
        machine=context.obj or Machine(),
        profile=profile,
        axes=axis,
        clocks=clock,
        contenders=contender,
        cases=case,
        record=output,
        counts_only=counts_only,
        seed=seed,
        allow_changed_rules=allow_changed_rules,
        subjects=subject,
        partial=partial,
        around=Around(
            gpus=guards.chosen_gpus(gpus, one_at_a_time, counted="work" in clock), one_at_a_time=one_at_a_time
        ),
    )
    if accepted is not None and use in ("work", "self-check"):
        raise GateError(f"--accepted: applies to timed points only; expected {INSTEAD[use]}")
    entries = [] if use in ("work", "self-check") else accepted_changes.load(accepted)
    with only_writer(output):
        report = (
            gate_sglang.report(chosen, against_sglang, sglang)
            if against_sglang
            else _report(chosen, use, baseline, against, result)
        )
    accept(report, entries, date.today(), whole=not (case or contender or axis or subject))
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
        return refused(use, against, str(reason))


def _use(
    baseline: Path | None,
    against: str | None,
    self_check: bool,
    clocks: Sequence[str],
    result: Path | None,
    against_sglang: str | None,
) -> Use:
    if against_sglang is not None and (baseline or against or self_check or result):
        raise GateError("--against-sglang excludes RESULT, --baseline, --against and --self-check")
    if against_sglang:
        return "against-sglang"
    guards.refuse_unknown_clocks(clocks, GATED)
    if (baseline is not None) + (against is not None) + self_check > 1:
        raise GateError("--baseline, --against and --self-check exclude each other; expected one of them")
    if "work" in clocks:
        if against is not None or self_check or len(clocks) > 1:
            raise GateError(
                "--clock work compares counts with a stored baseline; expected no other clock, no --against and no "
                "--self-check"
            )
        return "work"
    if baseline is None and result is not None:
        raise GateError(f"{result}: a RESULT is compared with a baseline; expected --baseline FILE with it")
    if baseline is None and against is None and not self_check:
        raise GateError("expected --baseline FILE, --against REV, --self-check or --clock work")
    return "baseline" if baseline is not None else "against" if against is not None else "self-check"


def _pairs(chosen: Choice, use: Use, against: str | None) -> Report:
    profile = chosen.config.gate.profile
    points = interleaved.pair_points(chosen.plan(profile, chosen.gated_clocks).points)
    changed = _changed_since(chosen, chosen.machine.commit_of(against), points) if against is not None else []
    if changed and not chosen.allow_changed_rules:
        return keeping.hold(refused(use, against), changed, allowed=False)
    chosen.machine.require_gpu()
    with chosen.machine.open_trees(against, None) as sides:
        seed = chosen.seed or chosen.machine.layout_seed()
        run = interleaved.pair_run(chosen.config, use, sides, points, seed, chosen.options(profile))
        follow_pairs(chosen, run, run_pairs(run, sides, chosen.machine.open_side, around=chosen.around))
    return keeping.hold(times.judge_pairs(run), changed, allowed=True)


def _changed_since(chosen: Choice, sha: str, points: Sequence[PairPoint]) -> list[str]:
    """The rules in which this bench.toml is looser than the commit's."""
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
    return keeping.changes(chosen.rules, then.rules, chosen.gated_clocks, lost, points)


def _work(chosen: Choice, baseline: Path | None, result: Path | None) -> Report:
    given = store.read(result) if result else None
    if given is None:
        guards.require_measuring()
    before = store.read(baseline or _work_baseline(given))
    profile = chosen.config.gate.work_profile
    wanted, was_wanted = chosen.of_baseline(before, profile, work=True)
    changed = keeping.changes(
        chosen.rules, keeping.rules_of(before), ["work"], keeping.left_out(before.points, was_wanted, wanted)
    )
    after, unknown = (given, []) if given else _counted(chosen, profile, before)
    match = _matched(chosen, before, after, wanted)
    report = judge_work(before, after, chosen.config.gate, match, counts_only=chosen.counts_only, renew=RENEW_WORK)
    report.selection = chosen.options(profile)
    report.notes += unknown
    return keeping.hold(report, changed, allowed=chosen.allow_changed_rules)


def _counted(chosen: Choice, profile: str, before: Results) -> tuple[Results, list[str]]:
    """Count the profile now, with --partial only the points that the baseline has. Also returns notes on the others."""
    plan = chosen.plan(profile, ["work"])
    known = _known_part(chosen, plan, before) if chosen.partial else plan
    return measured(chosen, known, profile), _unknown(plan, known)


def _matched(chosen: Choice, before: Results, after: Results, wanted: times.Wanted) -> comparable.Match:
    match = comparable.match(before.points, after.points, wanted)
    return comparable.without_new(match) if chosen.partial else match


def _known_part(chosen: Choice, plan: Plan, before: Results) -> Plan:
    """The planned points that the baseline has, whatever contender files held then.

    Raises CannotJudge if there are none.
    """
    known = {(point.case, outside.without_hash(point.contender), point.clock) for point in before.points}
    kept = [p for p in plan.points if (p.case, outside.without_hash(p.contender), p.clock) in known]
    if not kept:
        raise CannotJudge(
            f"the baseline has none of the {len(plan.points)} points of profile {plan.profile}; expected a "
            "baseline with some of them, or the profile that it was made of"
        )
    return msgspec.structs.replace(plan, points=tuple(kept))


def _unknown(plan: Plan, known: Plan) -> list[str]:
    missing = len(plan.points) - len(known.points)
    return [comparable.unknown(missing, len(plan.points))] if missing else []


def work_name(triton: object) -> str:
    """Name of the baseline of counts. Each minor version of Triton has its own, because it compiles other binaries."""
    return f"work-triton-{'.'.join(str(triton or 'unknown').split('.')[:2])}"


def _work_baseline(given: Results | None) -> Path:
    """The baseline for the Triton that counted `given`, or for the installed Triton."""
    environment = given.env if given else None
    triton = environment.identity.get("triton") if environment else package_version("triton")
    path = BASELINES / f"{work_name(triton)}.json"
    if path.exists():
        return path
    others = ", ".join(shown(other) for other in sorted(BASELINES.glob("work-*.json"))) or "none"
    raise CannotJudge(
        f"{shown(path)}: no baseline of counts under Triton {triton}; make one with: {RENEW_WORK}; "
        f"or compare counts only, with another Triton's baseline: --counts-only --baseline FILE ({others})"
    )


def _baseline(chosen: Choice, path: Path, result: Path | None) -> Report:
    before = store.read(path)
    if before.points and all(point.clock == "work" for point in before.points):
        return _work(chosen, path, result)
    wanted, was_wanted = chosen.of_baseline(before, chosen.config.gate.profile, work=False)
    then, clocks = keeping.rules_of(before), [*chosen.gated_clocks]
    lost = keeping.left_out(before.points, was_wanted, wanted)
    changed = keeping.changes(chosen.rules, then, clocks, lost, [p for p in before.points if wanted(p)])
    if result is not None:
        after = store.read(result)
        report = times.judge_baseline(before, after, chosen.config.gate, _matched(chosen, before, after, wanted))
    elif changed and not chosen.allow_changed_rules:
        report = refused("baseline", None)
    else:
        stated = chosen.profile or before.run.selection.profile
        plan = chosen.plan(stated if stated in chosen.config.profiles else chosen.config.gate.profile, clocks)
        known = _known_part(chosen, plan, before)
        report = _measured_against(chosen, before, [point for point in before.points if wanted(point)], wanted)
        report.notes += _unknown(plan, known)
    return keeping.hold(report, changed, allowed=chosen.allow_changed_rules)


def _measured_against(chosen: Choice, before: Results, points: Sequence[Point], wanted: times.Wanted) -> Report:
    """Measure all points, then the flagged ones again: in turns with the baseline's commit if this clone has it."""
    gate, machine = chosen.config.gate, chosen.machine
    code = collect_code()
    if code.instrument != before.code.instrument:
        raise CannotJudge(comparable.version_refusal(before.code, code))
    machine.require_gpu()
    planned = [_present(comparable.planned(point)) for point in points if point.status == "ok"]
    if not planned:
        raise CannotJudge("the baseline has no successful point that this gate judges")
    plan = interleaved.baseline_plan(chosen.config, before, planned, fresh=False)
    after = measured(chosen, plan, before.run.selection.profile)
    match = comparable.match(points, after.points, wanted)
    flagged = times.flagged_points(before, after, gate, match)
    if not flagged or times.refusals(before, after, gate, match):
        return times.judge_baseline(before, after, gate, match)
    again = [_present(comparable.planned(point)) for point in flagged]
    if machine.knows_commit(before.code.sha) and not any(outside.is_outside(point.contender) for point in again):
        report = times.judge_baseline(before, after, gate, match)
        times.merge_pairs(report, _interleaved(chosen, before, again))
        return report
    fresh_plan = interleaved.baseline_plan(chosen.config, before, again, fresh=True)
    fresh = measured(chosen, fresh_plan, before.run.selection.profile)
    return times.judge_baseline(before, after, gate, match, fresh)


def _present(planned: PlannedPoint) -> PlannedPoint:
    """A point of a baseline as it is measured now: a contender of a file gets the file's present hash."""
    return msgspec.structs.replace(planned, contender=outside.present(planned.contender))


def _interleaved(chosen: Choice, before: Results, points: Sequence[PlannedPoint]) -> Report:
    with chosen.machine.open_trees(before.code.sha, None) as sides:
        seed = chosen.seed or chosen.machine.layout_seed()
        options = times.selection_options(before)
        run = interleaved.pair_run(chosen.config, "baseline", sides, interleaved.pair_points(points), seed, options)
        events = run_pairs(run, sides, chosen.machine.open_side, screen=False, around=chosen.around)
        follow_pairs(chosen, run, events)
    return times.judge_pairs(run)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(gate)
