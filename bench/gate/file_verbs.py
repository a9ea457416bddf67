"""`compare` and `baseline` of the command line: two files side by side, and which file becomes a baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from bench import config as configuration
from bench import results as store
from bench.gate import comparable, files, fitness, judge, session
from bench.gate.choice import GATED, Choice
from bench.gate.options import AxisOption, CaseOption, ClockOption, ConfigOption, ContenderOption, ProfileOption
from bench.gate.session import Instrument
from bench.gate.verbs import measured
from bench.gate.verdict import GateError
from bench.results import Results


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
    known = [point.case for point in (*old.points, *new.points)]
    in_cases = configuration.case_filter(known, case)
    wanted = judge.wanted(clock or configuration.CLOCKS, contender or ["*"], in_cases)
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
        point for point in results.points if leave_out_unstable and fitness.is_unstable(point, chosen.config.gate)
    ]
    results.points = [point for point in results.points if point not in left_out]
    if faults := fitness.baseline_faults(results, chosen.config.gate) + files.work_faults(results):
        raise GateError("no baseline: " + "; ".join(faults))
    results.rules = chosen.rules
    path = output or files.BASELINES / f"{files.baseline_name(results)}.json"
    store.write(path, session.compact(results))
    for point in left_out:
        progress_console().print(f"left out: {fitness.instability(point, chosen.config.gate)}", soft_wrap=True)
    progress_console().print(f"written to {files.shown(path)}: {len(results.points)} points")


def _measure_baseline(chosen: Choice) -> Results:
    gate = chosen.config.gate
    if "work" in chosen.clocks:
        return measured(chosen, chosen.plan(gate.work_profile, ["work"]), chosen.profile or gate.work_profile)
    if not chosen.instrument.has_gpu():
        raise GateError(
            "no NVIDIA GPU was found to take times on; expected --clock work, or a RESULT measured elsewhere"
        )
    plan = chosen.plan(gate.profile, chosen.gated_clocks)
    rounds = -(-gate.baseline_rounds // gate.baseline_processes)
    settings = msgspec.structs.replace(plan.measure, rounds=rounds, processes=gate.baseline_processes)
    return measured(chosen, msgspec.structs.replace(plan, measure=settings), plan.profile)


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (compare, baseline):
        app.command()(verb)
