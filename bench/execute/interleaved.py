"""What a gate run does, in order: measure, look, measure again, decide. What it needs of a machine is injected."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from bench.execute import sweep as loop
from bench.execute.pairs import OpenSide, PairEvent, Runner, WorkerSide, opened
from bench.execute.protocol import Side
from bench.execute.sglang_source import sides as sglang_sides
from bench.execute.trees import Tree, commit_of, config_at, has_commit, trees
from bench.judge import times as judge
from bench.model.config import Config, Measure, Plan, PlannedPoint
from bench.model.environment import attached_profiler, command_line, has_gpu, utc_now
from bench.model.pairs import PairPoint, PairRun
from bench.model.records import Results
from bench.model.verdict import CannotJudge, Use

Sweep = Callable[[Plan, Results, Path], Iterable[loop.Event]]
OpenTrees = Callable[[str | None, str | None], AbstractContextManager[tuple[Tree, Tree]]]
# (before, after or the installed one, where versions are looked for) -> the trees of two versions of SGLang
OpenSglang = Callable[[str, str | None, Sequence[str]], AbstractContextManager[tuple[Tree, Tree]]]
LAYOUT_SEEDS = 1_000_000


def worker_on_gpu(tree: Tree, settings: Measure, contenders: tuple[str, ...]) -> Side:
    """A side that takes times on the GPU."""
    return WorkerSide(tree, "gpu", settings, contenders)


@dataclass
class Machine:
    """What a gate run needs of the machine. The tests hand in another one."""

    has_gpu: Callable[[], bool] = has_gpu
    sweep: Sweep = loop.sweep
    open_side: OpenSide = worker_on_gpu
    open_trees: OpenTrees = trees
    open_sglang: OpenSglang = sglang_sides
    knows_commit: Callable[[str | None], bool] = has_commit
    commit_of: Callable[[str], str] = commit_of
    config_at: Callable[[str, Config], Config | None] = config_at
    layout_seed: Callable[[], int] = field(default=lambda: random.SystemRandom().randrange(1, LAYOUT_SEEDS))

    def require_gpu(self) -> None:
        """Raises CannotJudge."""
        if profiler := attached_profiler():
            raise CannotJudge(f"runs under {profiler}: a profiled run yields no timing")
        if not self.has_gpu():
            raise CannotJudge("no NVIDIA GPU was found: only --clock work judges without one")


def pair_run(
    config: Config, use: Use, sides: tuple[Tree, Tree], points: Sequence[PairPoint], seed: int, selection: list[str]
) -> PairRun:
    """An empty record of an interleaved run."""
    return PairRun(
        use=use,
        a=sides[0].subject,
        b=sides[1].subject,
        gate=config.gate,
        measure=msgspec.structs.replace(config.measure, nodes=config.gate.nodes),
        seed=seed,
        started_utc=utc_now(),
        argv=command_line(),
        points=list(points),
        selection=selection,
    )


def pair_points(points: Iterable[PlannedPoint]) -> list[PairPoint]:
    return [PairPoint(point.case, point.contender, point.clock) for point in points]


def run_pairs(
    run: PairRun, sides: tuple[Tree, Tree], open_side: OpenSide, *, screen: bool = True
) -> Generator[PairEvent, None, None]:
    """Screen all points and confirm those it flags; without a screen, confirm all."""
    begun = time.monotonic()
    spent_s = run.duration_s
    with opened(*sides, run, open_side) as workers:
        runner = Runner(run, workers)
        if screen:
            yield from _timed(run, runner.stage("screen", run.points), begun, spent_s)
        flagged = judge.flagged_pairs(run.points, run.gate) if screen else run.points
        if flagged:
            yield from _timed(run, runner.stage("confirm", flagged), begun, spent_s)
    run.duration_s = spent_s + time.monotonic() - begun


def _timed(run: PairRun, events: Iterable[PairEvent], begun: float, spent_s: float) -> Generator[PairEvent, None, None]:
    for event in events:
        run.duration_s = spent_s + time.monotonic() - begun
        yield event


def baseline_plan(config: Config, baseline: Results, points: Sequence[PlannedPoint], *, fresh: bool) -> Plan:
    """The baseline's points, measured as this configuration does; `fresh` rounds come one from each new process."""
    gate = config.gate
    rounds = 1 if fresh else -(-gate.baseline_rounds // gate.baseline_processes)
    processes = gate.confirm_processes if fresh else gate.baseline_processes
    settings = msgspec.structs.replace(config.measure, rounds=rounds, processes=processes)
    return Plan(baseline.run.selection.profile, settings, tuple(points), shuffle=True, worker_env={})
