"""The verb `serve`: measures a real engine in each mode, the modes in turns."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from bench.cli import guards
from bench.cli.exit_codes import FOUND, INTERRUPTED
from bench.cli.options import ConfigOption
from bench.model import config as configuration
from bench.model import served
from bench.model.config import ConfigError
from bench.model.environment import collect_code, has_gpu
from bench.model.locks import only_writer
from bench.model.paths import ROOT, results_path
from bench.model.records import ResultsError
from bench.model.served import SERVE_VERSION, ServeResults
from bench.model.serving import Mode, ServePlan, make_serve_plan

DEFAULT_PROFILE = "quick"
CACHE = ROOT / "build" / "engine"


class Chosen(msgspec.Struct, frozen=True):
    """The options given on the command line. The plan can be made again from them."""

    profile: str = DEFAULT_PROFILE
    modes: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    repeats: int | None = None
    model: str | None = None
    tp: int | None = None
    where: bool = False
    cross_check: bool = False


def serve(
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", help="Serve profile of bench.toml; default: quick.")
    ] = None,
    mode: Annotated[
        list[str], typer.Option("--mode", "-m", help="Mode to serve in, instead of the profile's; may be repeated.")
    ] = [],
    load: Annotated[
        list[str],
        typer.Option(
            "--load", "-l", help="Only loads of this kind (decode, prefill, stream or arrivals); may be repeated."
        ),
    ] = [],
    repeats: Annotated[int | None, typer.Option("--repeats", min=1, help="Fresh processes for each mode.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="8b, 1b, a config.json, or a folder with a checkpoint.")
    ] = None,
    tp: Annotated[
        int | None,
        typer.Option("--tp", min=1, help="Tensor parallel size: how many GPUs of this host share the model."),
    ] = None,
    where: Annotated[
        bool, typer.Option("--where", help="After measuring, trace each mode once to show where the GPU's time goes.")
    ] = False,
    cross_check: Annotated[
        bool,
        typer.Option(
            "--cross-check",
            help="Afterwards put the same load on a server in each mode with SGLang's own bench_serving.",
        ),
    ] = False,
    cache: Annotated[Path, typer.Option("--cache", help="Folder for random weights and adapters.")] = CACHE,
    config: ConfigOption = configuration.DEFAULT_PATH,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Results file. Default: results/TIME-serve.json.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Continue this file; processes that it has are not run again.")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            "--budget", min=1, metavar="SECONDS", help="Time limit in seconds. No process starts that would exceed it."
        ),
    ] = None,
) -> None:
    """Measure a real SGLang engine in each mode. Without a GPU, check the options and print what would run."""
    chosen = Chosen(profile or DEFAULT_PROFILE, tuple(mode), tuple(load), repeats, model, tp, where, cross_check)
    if resume and (chosen != Chosen() or output):
        raise ConfigError(
            f"--resume {resume}: continues the file's own run; expected no other option but --budget and --cache"
        )
    results = served.read(resume) if resume else None
    if results is not None:
        chosen = _chosen_of(results)
    plan = plan_of(configuration.load(config), chosen)
    if not has_gpu():
        _say_plan(plan, chosen)
        guards.require_gpu("serve")
    guards.require_timing("serve")
    guards.require_gpus(plan.setup.tp)
    if chosen.cross_check:
        _require_servers()
    path = resume or output or results_path(f"serve-{plan.profile}")
    with only_writer(path):
        results = _resumed(path, plan) if resume else _begun(path, plan, chosen)
        _run(plan, results, path, chosen, cache, budget)


def _require_servers() -> None:
    """Raises ConfigError if the cross-check, which comes after all engines, could only fail."""
    from bench.engine import imports

    imports.require(imports.SERVER, imports.CLIENT)


def plan_of(config: configuration.Config, chosen: Chosen) -> ServePlan:
    """The plan, after checking that the model fits it. Raises ConfigError."""
    from bench.engine.weights import model_config, refuse_ranks

    plan = make_serve_plan(
        config.serve,
        config.serving,
        chosen.profile,
        modes=chosen.modes,
        kinds=chosen.kinds,
        repeats=chosen.repeats,
        model=chosen.model,
        tp=chosen.tp,
    )
    config_of_model, _ = model_config(plan.setup.model)
    refuse_ranks(config_of_model, plan.setup.tp)
    return plan


def _say_plan(plan: ServePlan, chosen: Chosen) -> None:
    from bench.show.serving import planned
    from bench.show.tables import console

    console().print(planned(plan, where=chosen.where, cross_check=chosen.cross_check))


def _chosen_of(results: ServeResults) -> Chosen:
    run = results.run
    return Chosen(
        run.profile,
        tuple(run.chosen_modes),
        tuple(run.kinds),
        run.repeats,
        run.model,
        run.tp,
        run.where,
        run.cross_check,
    )


def _begun(path: Path, plan: ServePlan, chosen: Chosen) -> ServeResults:
    from bench.engine.run import new_results

    if path.exists():
        raise ResultsError(f"{path}: exists; expected a new file, or --resume {path} to continue it")
    return new_results(
        plan,
        kinds=[*chosen.kinds],
        modes=[*chosen.modes],
        model=chosen.model,
        tp=chosen.tp,
        where=chosen.where,
        cross_check=chosen.cross_check,
    )


def _resumed(path: Path, plan: ServePlan) -> ServeResults:
    """The file, read anew: another process may have continued it. Raises ResultsError if it would mix two runs."""
    results, code = served.read(path), collect_code()
    for what, then, now in (
        ("the format", results.schema.version, SERVE_VERSION),
        ("the plan (bench.toml or the options)", results.run.plan_sha256, plan.digest),
        ("the library's source", results.code.kernel_source_sha256, code.kernel_source_sha256),
        ("the suite's source", results.code.suite_source_sha256, code.suite_source_sha256),
    ):
        if then != now:
            raise ResultsError(f"{path}: {what} has changed since the file was begun; expected a new run")
    results.run.resumed += 1
    return results


def _run(plan: ServePlan, results: ServeResults, path: Path, chosen: Chosen, cache: Path, budget: float | None) -> None:
    from bench.engine.run import Surroundings
    from bench.engine.run import serve as run_serve
    from bench.engine.watch import look
    from bench.judge import answers
    from bench.show.serving import follow, summary
    from bench.show.tables import console

    out = console()
    around = Surroundings(cache, chosen.where, budget, look=partial(look, plan.setup.tp))
    events = run_serve(plan, results, path, around)
    try:
        for line in follow(events):
            out.print(line, soft_wrap=True)
    except KeyboardInterrupt:
        events.close()
        out.print(f"interrupted; continue with: python -m bench serve --resume {path}", soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None
    out.print(summary(results))
    out.print(f"written to {path}")
    wrong = answers.wrong(answers.answer_checks(results))
    ours = [process for process in results.processes if Mode(process.mode).plugin or not Mode(process.mode).engine]
    if wrong or any(process.status != "ok" for process in ours):
        raise typer.Exit(FOUND)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(serve)
