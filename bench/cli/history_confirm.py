"""`history confirm`: measures the changes that a history shows again, with interleaved pairs of their commits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import (
    CaseOption,
    ConfigOption,
    ContenderFileOption,
    ContenderOption,
    GpuOption,
    LineOption,
    SeedOption,
    SglangCheckoutOption,
    SglangLineOption,
    SubjectOption,
)
from bench.cli.selection import confirming
from bench.cli.series import STORE, ExportedOption, StoreOption, source_of, view
from bench.execute.commits import Libraries
from bench.execute.interleaved import Machine
from bench.model import config as configuration
from bench.model import pairs as pair_store
from bench.model.verdict import CannotJudge, Exit


def confirm(
    context: typer.Context,
    commits: LineOption = None,
    contender: ContenderOption = [],
    contender_file: ContenderFileOption = [],
    subject: SubjectOption = [],
    case: CaseOption = [],
    gpu: GpuOption = None,
    config: ConfigOption = configuration.DEFAULT_PATH,
    folder: StoreOption = STORE,
    exported: ExportedOption = None,
    sglang: SglangLineOption = None,
    sglang_checkout: SglangCheckoutOption = None,
    budget_s: Annotated[
        float, typer.Option("--budget-s", min=1, help="Time limit for measuring the pairs, in seconds.")
    ] = 300,
    processes: Annotated[int | None, typer.Option(min=3, help="Fresh processes for each pair of commits.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the measured pairs.")] = None,
    seed: SeedOption = None,
) -> None:
    """Measure the commits around each change in turns, largest change first. Exit status: 0 all answered, 3 not all."""
    from bench.execute.bisect import Bisection
    from bench.execute.confirm import confirm as tried
    from bench.show.history import follow_confirmation

    loaded = confirming(configuration.load(config), processes)
    source = source_of(exported, sglang, sglang_checkout, loaded)
    found = view(folder, commits, ["graph"], [*contender, *subject], case, gpu, config, exported)
    if not found.changes:
        raise CannotJudge(f"{folder}: shows no lasting change of level, so there is nothing to confirm")
    machine: Machine = context.obj or Machine()
    machine.require_gpu()
    with Libraries(source) as libraries:
        chosen = seed or machine.layout_seed()
        job = Bisection(loaded, found.line, [], libraries, machine.open_side, chosen)
        try:
            answered = follow_confirmation(tried(job, found.changes, budget_s))
        finally:
            for number, pairs in enumerate(job.runs, 1):
                if output is not None and any(point.rounds for point in pairs.points):
                    pair_store.write(output / f"confirm-{number}.json", pairs)
    if not answered:
        raise typer.Exit(int(Exit.CANNOT_JUDGE))
