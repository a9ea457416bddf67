"""The verbs `compare` (two files side by side) and `baseline` (store a file as the baseline)."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.cli import foreign_file, guards, served_file
from bench.cli.gate import work_name
from bench.cli.gate_steps import measured
from bench.cli.options import (
    AxisOption,
    CaseOption,
    ClockOption,
    ConfigOption,
    ContenderFileOption,
    ContenderOption,
    ProfileOption,
    RowsFormatOption,
    SubjectOption,
)
from bench.cli.selection import GATED, Choice, of_files, replicated
from bench.execute.interleaved import Machine
from bench.execute.provenance import refuse_unproven
from bench.judge import comparable, fitness
from bench.model import config as configuration
from bench.model import store
from bench.model.config import ConfigError
from bench.model.paths import BASELINES, shown
from bench.model.records import Results
from bench.model.text import for_log
from bench.model.verdict import GateError
from bench.show.rows import FORMATS


def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="Results file, the one before.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Results file, the one after.")],
    clock: ClockOption = [],
    contender: ContenderOption = [],
    subject: SubjectOption = [],
    case: CaseOption = [],
    format: RowsFormatOption = "table",
) -> None:
    """Compare two files as the gate does, without a verdict."""
    from bench.judge.compare import compare_files
    from bench.show.gate import comparison_rows, show_comparison

    guards.refuse_unknown_format(format)
    if foreign_file.is_one(before) or foreign_file.is_one(after):
        foreign_file.compare(before, after, [*contender, *subject], format)
        return
    if served_file.is_one(before) or served_file.is_one(after):
        served_file.compare(before, after, case, [*contender, *subject], clock, format)
        return
    old, new = store.read(before), store.read(after)
    wanted = of_files([*old.points, *new.points], clock or configuration.CLOCKS, [*contender, *subject], case)
    if subject and not any(map(wanted, [*old.points, *new.points])):
        raise ConfigError(
            f"--subject {' '.join(subject)}: neither file has a point of this contender; expected a contender that "
            "one has"
        )
    comparison = compare_files(old, new, comparable.match(old.points, new.points, wanted))
    if format == "table":
        show_comparison(comparison)
    else:
        sys.stdout.write(for_log(FORMATS[format](comparison_rows(comparison))))


def baseline(
    context: typer.Context,
    result: Annotated[Path | None, typer.Argument(help="Results to keep as a baseline; default: measure now.")] = None,
    profile: ProfileOption = None,
    axis: AxisOption = [],
    clock: ClockOption = [],
    contender: ContenderOption = [],
    contender_file: ContenderFileOption = [],
    case: CaseOption = [],
    config: ConfigOption = configuration.DEFAULT_PATH,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write. Default: bench/baselines/NAME.json.")
    ] = None,
    leave_out_unstable: Annotated[
        bool, typer.Option("--leave-out-unstable", help="Keep only the stable points, and print the unstable ones.")
    ] = False,
) -> None:
    """Write a baseline. Refuses uncommitted changes, too few rounds, and failed or unstable points."""
    from bench.show.gate import progress_console

    chosen = Choice(
        config=configuration.load(config),
        machine=context.obj or Machine(),
        profile=profile,
        axes=axis,
        clocks=clock,
        contenders=contender,
        cases=case,
    )
    guards.refuse_unknown_clocks(clock, GATED)
    guards.refuse_mixed_clocks(clock)
    guards.refuse_dirty()
    results = _selected(store.read(result), chosen) if result else _measure_baseline(chosen)
    refuse_unproven(results, result)
    left_out = [
        point for point in results.points if leave_out_unstable and fitness.is_unstable(point, chosen.config.gate)
    ]
    results.points = [point for point in results.points if point not in left_out]
    if faults := fitness.baseline_faults(results, chosen.config.gate) + fitness.work_faults(results):
        raise GateError("no baseline: " + "; ".join(faults))
    results.rules = chosen.rules
    path = output or BASELINES / f"{baseline_name(results)}.json"
    store.write(path, store.compact(results))
    for point in left_out:
        progress_console().print(f"left out: {fitness.instability(point, chosen.config.gate)}", soft_wrap=True)
    progress_console().print(f"written to {shown(path)}: {len(results.points)} points")


def _selected(results: Results, chosen: Choice) -> Results:
    """The results, reduced to the chosen points. Raises ConfigError for options that only a measurement can follow."""
    if chosen.profile or chosen.axes:
        raise ConfigError(
            "--profile and --axis select what to measure; expected --case, -k or -c to select from a RESULT"
        )
    wanted = of_files(results.points, chosen.clocks or configuration.CLOCKS, chosen.contenders, chosen.cases)
    results.points = [point for point in results.points if wanted(point)]
    return results


def _measure_baseline(chosen: Choice) -> Results:
    gate = chosen.config.gate
    if "work" in chosen.clocks:
        return measured(chosen, chosen.plan(gate.work_profile, ["work"]), chosen.profile or gate.work_profile)
    if not chosen.machine.has_gpu():
        raise GateError(
            "times need an NVIDIA GPU and none was found; expected --clock work, or a RESULT measured elsewhere"
        )
    plan = chosen.plan(gate.profile, chosen.gated_clocks)
    rounds = -(-gate.baseline_rounds // gate.baseline_processes)
    return measured(chosen, replicated(plan, rounds, gate.baseline_processes), plan.profile)


def baseline_name(results: Results) -> str:
    """`work-triton-3.6` for counts; the GPU model, such as `nvidia-h100-80gb-hbm3`, for times."""
    identity = results.env.identity if results.env else {}
    if all(point.clock == "work" for point in results.points):
        return work_name(identity.get("triton"))
    gpu = identity.get("gpu")
    return re.sub(r"[^a-z0-9]+", "-", str(gpu or "unknown-gpu").lower()).strip("-")


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (compare, baseline):
        app.command()(verb)
