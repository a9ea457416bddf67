"""The verbs that measure kernels: `sweep`, `tune` and `layer`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from bench.cli import guards
from bench.cli.exit_codes import FOUND, INTERRUPTED
from bench.cli.options import (
    AxisOption,
    CaseOption,
    ClockOption,
    ConfigOption,
    ContenderFileOption,
    ContenderOption,
    GpusOption,
    OneAtATimeOption,
    ProcessesOption,
    ProfileOption,
    RayOption,
    RoundsOption,
    SglangOption,
)
from bench.cli.selection import DEFAULT_PROFILE, planned
from bench.execute import installs
from bench.execute.tasks import Around
from bench.judge.figures import OWN
from bench.model import config as configuration
from bench.model import store
from bench.model.config import Config, ConfigError, Plan
from bench.model.environment import collect_code, has_gpu
from bench.model.gpus import Gpu
from bench.model.locks import only_writer
from bench.model.outside import is_outside
from bench.model.paths import results_path
from bench.model.records import SCHEMA_VERSION, Point, Results, ResultsError, Selection
from bench.model.registry import INSTALLED


def sweep(
    profile: ProfileOption = None,
    axis: AxisOption = [],
    clock: ClockOption = [],
    contender: ContenderOption = [],
    case: CaseOption = [],
    sglang: SglangOption = [],
    contender_file: ContenderFileOption = [],
    config: ConfigOption = configuration.DEFAULT_PATH,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Results file; default: results/TIME.json.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Continue this file; points that it has are not measured again.")
    ] = None,
    rounds: RoundsOption = None,
    processes: ProcessesOption = None,
    gpus: GpusOption = None,
    one_at_a_time: OneAtATimeOption = False,
    ray: RayOption = None,
) -> None:
    """Verify and measure every point of a profile. Without a GPU, count the work of each."""
    selection = Selection(profile or DEFAULT_PROFILE, axis, clock, contender, case, rounds, processes)
    if resume and (selection != Selection(DEFAULT_PROFILE) or output):
        raise ConfigError(
            f"--resume {resume}: continues the file's own selection; expected no options with it but --sglang, "
            "--contender-file, --gpus and --one-at-a-time"
        )
    if ray and (gpus or sglang):
        raise ConfigError(f"--ray {ray}: takes every GPU of the cluster; expected neither --gpus nor --sglang with it")
    selection.axes = with_versions(selection.axes, sglang)
    results = store.read(resume) if resume else None  # bad input is named before anything is made
    loaded = configuration.load(config)
    plan = plan_of(loaded, results.run.selection if results else selection)
    guards.require_measuring()
    others = installs.find(installs.wanted(point.contender for point in plan.points), sglang, loaded.sglang_files)
    counted = all(point.clock == "work" for point in plan.points)
    chosen = guards.chosen_gpus(gpus, one_at_a_time and not ray, counted=counted)
    path = resume or output or results_path(selection.profile)
    again = ["python -m bench sweep", f"--resume {path}", *_where(ray, chosen, one_at_a_time=one_at_a_time)]
    # The cluster is reached first: a file is begun only where there is something to measure on.
    with _hosts(ray, counted) if ray else nullcontext(Around(gpus=chosen)) as around, only_writer(path):
        if resume:
            results = store.read(resume)  # again: another process may have gone on with it until now
            _check_resumable(results, plan, path)
        else:
            results = _begin(plan, selection, path)
        _sweep(plan, results, path, others, replace(around, one_at_a_time=one_at_a_time), " ".join(again))


def _where(ray: str | None, gpus: Sequence[Gpu], *, one_at_a_time: bool) -> list[str]:
    """The options that say where to measure, which a file does not keep."""
    if ray:
        return [f"--ray {ray}"]
    named = [f"--gpus {','.join(str(gpu.index) for gpu in gpus)}"] if gpus else []
    return [*named, *(["--one-at-a-time"] if one_at_a_time else [])]


def _hosts(address: str, counted: bool) -> AbstractContextManager[Around]:
    from bench.execute.ray_hosts import hosts

    return hosts(address, counted=counted)


def with_versions(axes: list[str], given: list[Path]) -> list[str]:
    """The axes, with one for the installed SGLang and the `given` ones. Unchanged if an axis already names versions."""
    if not given or any(text.startswith("sglang=") for text in axes):
        return axes
    return [*axes, ",".join([f"sglang={INSTALLED}", *map(installs.version_in, given)])]


def plan_of(config: Config, selection: Selection) -> Plan:
    """The plan of a sweep. Without a GPU, and if no clock is named, it uses the work clock."""
    guards.refuse_unknown_clocks(selection.clocks)
    if any(name != "work" for name in selection.clocks):
        guards.require_gpu(f"--clock {' '.join(selection.clocks)}", "work")
    return planned(config, selection, () if selection.clocks or has_gpu() else ["work"])


def _sweep(plan: Plan, results: Results, path: Path, others: dict[str, Path], around: Around, again: str) -> None:
    from bench.show.tables import console, summary

    out = console()
    if all(point.clock == "work" for point in plan.points):
        out.print("Work clock: what follows are counts from Triton's interpreter, not times.")
    _run(plan, results, path, others, around, again)
    out.print(summary(results))
    out.print(f"written to {path}")
    if any(_is_own(point.contender) and not _as_wanted(point) for point in results.points):
        raise typer.Exit(FOUND)


def _is_own(contender: str) -> bool:
    """Whether a contender is of this repository or of a file that was named: those are under development."""
    return contender.startswith(OWN) or is_outside(contender)


def _as_wanted(point: Point) -> bool:
    """A point is ok; on the work clock it may be too large to be counted, and a file may need what is not here."""
    may_be_skipped = point.clock == "work" or is_outside(point.contender)
    return point.status == "ok" or (may_be_skipped and point.status == "skipped")


def _begin(plan: Plan, selection: Selection, path: Path) -> Results:
    from bench.execute.sweep import new_results

    try:
        exists = path.exists()
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written: {error.strerror}") from error
    if exists:
        raise ResultsError(f"{path}: exists; expected a new file, or --resume {path} to continue it")
    return new_results(plan, selection)


def _check_resumable(results: Results, plan: Plan, path: Path) -> None:
    """Raises ResultsError if continuing would mix two measurements in one file."""
    from bench.execute.sweep import plan_digest

    code, planned = collect_code(), {point.contender for point in plan.points}
    for known in results.outside:
        if known.contender not in planned:
            raise ResultsError(
                f"{path}: {known.contender} was measured from {known.file}, and no --contender-file has that file's "
                "hash; expected that file as it was, or a new sweep"
            )
    for what, then, now in (
        ("the format", results.schema.version, SCHEMA_VERSION),
        ("the plan (bench.toml or the options)", results.run.plan_sha256, plan_digest(plan)),
        ("the kernel's source", results.code.kernel_source_sha256, code.kernel_source_sha256),
        ("the suite's measuring code", results.code.instrument, code.instrument),
    ):
        if then != now:
            raise ResultsError(f"{path}: {what} has changed since the file was begun; expected a new sweep")
    results.run.resumed += 1


def _run(plan: Plan, results: Results, path: Path, others: dict[str, Path], around: Around, again: str) -> None:
    from bench.execute.sweep import sweep as run_sweep
    from bench.show.progress import follow
    from bench.show.tables import console

    events = run_sweep(plan, results, path, others, around)
    try:
        follow(events, console())
    except KeyboardInterrupt:
        events.close()
        console().print(f"interrupted; continue with: {again}", soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None


def tune(
    kernel: Annotated[
        list[str] | None, typer.Option("--kernel", "-k", help="Only this kernel; may be repeated.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write. Default: the library's table for this GPU.")
    ] = None,
    gpus: GpusOption = None,
    one_at_a_time: OneAtATimeOption = False,
) -> None:
    """Time tile sizes for every kernel on this GPU and write a table of those that beat the library's rules."""
    guards.require_timing("tune")
    import torch

    from bench.execute.tuning import run
    from bench.execute.tuning.subjects import SUBJECTS
    from bench.show.progress import tuned
    from bench.show.tables import console
    from csgmv_embed.launch.tuned import table_path

    chosen = [subject for subject in SUBJECTS if not kernel or subject.kernel in kernel]
    if unknown := set(kernel or ()) - {subject.kernel for subject in SUBJECTS}:
        known = ", ".join(subject.kernel for subject in SUBJECTS)
        raise typer.BadParameter(f"unknown kernel {', '.join(sorted(unknown))}; expected some of {known}")
    on = guards.chosen_gpus(gpus, one_at_a_time)
    gpu = on[0].name if on else torch.cuda.get_device_name()
    found = tuned(run.tune(chosen, on, one_at_a_time=one_at_a_time), console())
    asked = [f"-k {name}" for name in kernel or ()] + ([f"--gpus {gpus}"] if gpus else [])
    asked += ["--one-at-a-time"] if one_at_a_time else []
    command = " ".join(["python -m bench tune", *asked])
    path = output or table_path(gpu)
    store.write_bytes(path, run.encode(run.as_file(gpu, collect_code().sha, command, found, on)))
    console().print(f"written to {path}")


def layer(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the samples to this file, as JSON.")
    ] = None,
) -> None:
    """Time SGLang's embedding layer and lm_head with the plugin on and off."""
    guards.require_timing("layer")
    from bench.execute import layer as layers
    from bench.model.environment import collect_environment
    from bench.show.layer import shown
    from bench.show.tables import console

    rows = [*shown(layers.compare(), console())]
    if output is not None:
        store.write_bytes(output, layers.encode(rows, collect_environment("cuda"), collect_code()))
        console().print(f"written to {output}")


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (sweep, tune, layer):
        app.command()(verb)
