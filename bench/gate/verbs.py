"""`gate`, `compare` and `baseline` of the command line: one short function a verb, the steps in session.py."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from bench import config as configuration
from bench import results as store
from bench.case import ClockName
from bench.config import Config, ConfigError, Plan, PlannedPoint
from bench.environment import ROOT, collect_code
from bench.gate import comparable, files, judge, session
from bench.gate import records as pair_store
from bench.gate.pairs import PairEvent
from bench.gate.session import Instrument
from bench.gate.verdict import CannotJudge, Exit, GateError, Report, Subject, Use
from bench.gate.work import judge_work
from bench.isolate import WorkerDied
from bench.results import Point, Results, ResultsError, Selection

BASELINES = ROOT / "bench" / "baselines"
WORK_BASELINE = BASELINES / "work.json"
RENEW_WORK = "python -m bench baseline --clock work"
EXPECTED = (ConfigError, GateError, ResultsError, WorkerDied)
TIMED: tuple[ClockName, ...] = ("graph", "eager")
GATED: tuple[ClockName, ...] = (*TIMED, "work")

ProfileOption = Annotated[str | None, typer.Option("--profile", "-p", help="Profile; default: the gate's.")]
AxisOption = Annotated[list[str], typer.Option("--axis", "-a", metavar="NAME=V,...", help="Replace an axis.")]
ClockOption = Annotated[list[str], typer.Option("--clock", "-k", help="graph, eager or work; default: the gate's.")]
ContenderOption = Annotated[list[str], typer.Option("--contender", "-c", help="Name or pattern; may repeat.")]
CaseOption = Annotated[list[str], typer.Option("--case", metavar="NAME=V,...", help="Only cases with these values.")]
ConfigOption = Annotated[Path, typer.Option("--config", help="Configuration file.")]
FormatOption = Annotated[
    list[str],
    typer.Option(
        "--format",
        "-f",
        metavar="NAME[=FILE]",
        help="table, markdown, json, junit, bencher, github or google; to standard output or a file; may repeat.",
    ),
]


@dataclass
class Choice:
    """What the command line chose, for any of the uses."""

    config: Config
    instrument: Instrument
    profile: str | None = None
    axes: list[str] = field(default_factory=list)
    clocks: list[str] = field(default_factory=list)
    contenders: list[str] = field(default_factory=list)
    cases: list[str] = field(default_factory=list)
    record: Path | None = None
    counts_only: bool = False
    seed: int | None = None

    @property
    def gated_clocks(self) -> list[ClockName]:
        chosen = [clock for clock in TIMED if clock in self.clocks]
        return chosen or list(self.config.gate.clocks)

    @property
    def patterns(self) -> Sequence[str]:
        return self.contenders or self.config.gate.contenders

    def plan(self, profile: str, clocks: Sequence[ClockName]) -> Plan:
        """The points to measure; of the gate's contenders only those that the profile has."""
        overrides = configuration.parse_axis_overrides(self.axes)
        plan = configuration.make_plan(
            self.config,
            self.profile or profile,
            overrides=overrides,
            clocks=clocks,
            contenders=self.contenders,
            cases=self.cases,
        )
        chosen = judge.wanted(clocks, self.patterns)
        points = tuple(point for point in plan.points if chosen(point))
        if not points:
            raise ConfigError(f"profile {plan.profile}: none of its contenders is {' or '.join(self.patterns)}")
        return msgspec.structs.replace(plan, points=points)

    def options(self, profile: str) -> list[str]:
        return ["-p", self.profile or profile, *(part for axis in self.axes for part in ("-a", axis))]


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
    seed: Annotated[int | None, typer.Option("--seed", min=1, help="Of layouts and order; default: random.")] = None,
) -> None:
    """Decide whether the kernel became slower. Exit: 0 no, 1 yes, 2 wrong usage, 3 cannot judge."""
    from bench.report.gate import emit, parse_formats

    formats = parse_formats(format)
    use = _use(baseline, against, self_check, clock, result)
    chosen = Choice(
        configuration.load(config),
        context.obj or Instrument(),
        profile,
        axis,
        clock,
        contender,
        case,
        output,
        counts_only,
        seed,
    )
    try:
        report = _report(chosen, use, baseline, against, result)
        emit(report, formats)
    except EXPECTED:
        raise
    except Exception:  # Python would exit with 1, which is a regression here
        traceback.print_exc()
        raise typer.Exit(int(Exit.USAGE)) from None
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
    for name in clocks:
        if name not in GATED:
            raise GateError(f"--clock {name}: expected one of {', '.join(GATED)}")
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


def _refused(use: Use, against: str | None, reason: str) -> Report:
    code = collect_code()
    here = judge.subject(code, "this tree")
    before = Subject(against, None, None, "") if against else here
    return Report(use, before, here, {}, [], refusals=[reason])


def _pairs(chosen: Choice, use: Use, against: str | None) -> Report:
    chosen.instrument.require_gpu()
    profile = chosen.config.gate.profile
    points = session.pair_points(chosen.plan(profile, chosen.gated_clocks).points)
    with chosen.instrument.open_trees(against, None) as sides:
        seed = chosen.seed or chosen.instrument.layout_seed()
        run = session.pair_run(chosen.config, use, sides, points, seed, chosen.options(profile))
        _follow_pairs(chosen, run, session.run_pairs(run, sides, chosen.instrument.open_side))
    return judge.judge_pairs(run)


def _follow_pairs(chosen: Choice, run: pair_store.PairRun, events: Iterable[PairEvent]) -> None:
    from bench.report.gate import follow_pairs

    path = chosen.record or files.results_path("pairs")
    try:
        follow_pairs(events)
    finally:  # what was measured is kept, whatever became of the run
        if any(point.rounds for point in run.points):
            pair_store.write(path, run)


def _work(chosen: Choice, baseline: Path | None, result: Path | None) -> Report:
    path = baseline or WORK_BASELINE
    if baseline is None and not path.exists():
        raise CannotJudge(f"{files.shown(path)}: no baseline of counts; make one with: {RENEW_WORK}")
    before = store.read(path)
    profile = chosen.config.gate.work_profile
    after = store.read(result) if result else _measured(chosen, chosen.plan(profile, ["work"]), profile)
    match = comparable.match(before.points, after.points, judge.wanted(["work"], chosen.patterns, chosen.cases))
    report = judge_work(before, after, chosen.config.gate, match, counts_only=chosen.counts_only, renew=RENEW_WORK)
    report.selection = chosen.options(profile)
    return report


def _baseline(chosen: Choice, path: Path, result: Path | None) -> Report:
    before = store.read(path)
    if before.points and all(point.clock == "work" for point in before.points):
        return _work(chosen, path, result)
    wanted = judge.wanted(chosen.gated_clocks, chosen.patterns, chosen.cases)
    if result is not None:
        after = store.read(result)
        return judge.judge_baseline(
            before, after, chosen.config.gate, comparable.match(before.points, after.points, wanted)
        )
    return _measured_against(chosen, before, [point for point in before.points if wanted(point)], wanted)


def _measured_against(chosen: Choice, before: Results, points: Sequence[Point], wanted: judge.Wanted) -> Report:
    """Measure, look, and measure the flagged points again: interleaved where the baseline's commit is at hand."""
    gate, instrument = chosen.config.gate, chosen.instrument
    code = collect_code()
    if code.instrument != before.code.instrument:
        raise CannotJudge(comparable.version_refusal(before.code, code))
    instrument.require_gpu()
    planned = [comparable.planned(point) for point in points if point.status == "ok"]
    if not planned:
        raise CannotJudge("the baseline has no point that this gate judges")
    plan = session.baseline_plan(chosen.config, before, planned, fresh=False)
    after = _measured(chosen, plan, before.run.selection.profile)
    match = comparable.match(points, after.points, wanted)
    flagged = judge.flagged_points(before, after, gate, match)
    if not flagged or judge.refusals(before, after, gate, match):
        return judge.judge_baseline(before, after, gate, match)
    again = [comparable.planned(point) for point in flagged]
    if instrument.knows_commit(before.code.sha):
        report = judge.judge_baseline(before, after, gate, match)
        session.merge_pairs(report, _interleaved(chosen, before, again))
        return report
    fresh_plan = session.baseline_plan(chosen.config, before, again, fresh=True)
    fresh = _measured(chosen, fresh_plan, before.run.selection.profile)
    return judge.judge_baseline(before, after, gate, match, fresh)


def _interleaved(chosen: Choice, before: Results, points: Sequence[PlannedPoint]) -> Report:
    with chosen.instrument.open_trees(before.code.sha, None) as sides:
        seed = chosen.seed or chosen.instrument.layout_seed()
        options = judge.selection_options(before)
        run = session.pair_run(chosen.config, "baseline", sides, session.pair_points(points), seed, options)
        events = session.run_pairs(run, sides, chosen.instrument.open_side, screen=False)
        _follow_pairs(chosen, run, events)
    return judge.judge_pairs(run)


def _measured(chosen: Choice, plan: Plan, profile: str) -> Results:
    """A sweep of the plan, followed on standard error."""
    from bench.report.gate import progress_console
    from bench.report.progress import follow

    counts = all(point.clock == "work" for point in plan.points)
    if counts:
        settings = msgspec.structs.replace(plan.measure, rounds=1, processes=1)
        plan = msgspec.structs.replace(plan, measure=settings)
    results = session.new_results(plan, Selection(profile, chosen.axes, chosen.clocks, chosen.contenders, chosen.cases))
    with tempfile.TemporaryDirectory(prefix="bench-gate-") as folder:
        keep = Path(folder) / "counts.json" if counts and chosen.record is None else chosen.record
        path = keep or files.results_path("gate")
        follow(chosen.instrument.sweep(plan, results, path), progress_console())
    return results


def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="Results file.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Results file.")],
    clock: ClockOption = [],
    contender: ContenderOption = [],
    case: CaseOption = [],
    config: ConfigOption = configuration.DEFAULT_PATH,
) -> None:
    """The gate's analysis of two files as a table, without a verdict."""
    from bench.gate.compare import compare_files
    from bench.report.gate import show_comparison

    old, new = store.read(before), store.read(after)
    wanted = judge.wanted(clock or configuration.CLOCKS, contender or ["*"], case)
    show_comparison(compare_files(old, new, comparable.match(old.points, new.points, wanted)))


def baseline(
    context: typer.Context,
    result: Annotated[Path | None, typer.Argument(help="Results to keep as a baseline; default: measure now.")] = None,
    profile: ProfileOption = None,
    axis: AxisOption = [],
    clock: ClockOption = [],
    contender: ContenderOption = [],
    case: CaseOption = [],
    config: ConfigOption = configuration.DEFAULT_PATH,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: bench/baselines/NAME.json.")] = None,
    leave_out_unstable: Annotated[
        bool, typer.Option("--leave-out-unstable", help="Keep the stable points and name the others.")
    ] = False,
) -> None:
    """Write a baseline; refuses uncommitted changes, too few rounds, failed and unstable points."""
    from bench.report.gate import progress_console

    chosen = Choice(configuration.load(config), context.obj or Instrument(), profile, axis, clock, contender, case)
    for name in clock:
        if name not in GATED:
            raise GateError(f"--clock {name}: expected one of {', '.join(GATED)}")
    if "work" in clock and len(clock) > 1:
        raise GateError("--clock work makes a baseline of its own; expected no other clock beside it")
    files.refuse_dirty()
    results = store.read(result) if result else _measure_baseline(chosen)
    files.refuse_unproven(results, result)
    left_out = [
        point for point in results.points if leave_out_unstable and judge.is_unstable(point, chosen.config.gate)
    ]
    results.points = [point for point in results.points if point not in left_out]
    if faults := judge.baseline_faults(results, chosen.config.gate) + files.work_faults(results):
        raise GateError("no baseline: " + "; ".join(faults))
    path = output or BASELINES / f"{files.baseline_name(results)}.json"
    store.write(path, session.compact(results))
    for point in left_out:
        progress_console().print(f"left out: {judge.instability(point, chosen.config.gate)}", soft_wrap=True)
    progress_console().print(f"written to {files.shown(path)}: {len(results.points)} points")


def _measure_baseline(chosen: Choice) -> Results:
    gate = chosen.config.gate
    if "work" in chosen.clocks:
        return _measured(chosen, chosen.plan(gate.work_profile, ["work"]), chosen.profile or gate.work_profile)
    if not chosen.instrument.has_gpu():
        raise GateError(
            "no NVIDIA GPU was found to take times on; expected --clock work, or a RESULT measured elsewhere"
        )
    plan = chosen.plan(gate.profile, chosen.gated_clocks)
    rounds = -(-gate.baseline_rounds // gate.baseline_processes)
    settings = msgspec.structs.replace(plan.measure, rounds=rounds, processes=gate.baseline_processes)
    return _measured(chosen, msgspec.structs.replace(plan, measure=settings), plan.profile)


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (gate, compare, baseline):
        app.command()(verb)
