"""What a gate run needs: the machine, which tests replace, and an empty record to fill."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from bench.execute import sweep as loop
from bench.execute.pairs import OpenSide, WorkerSide
from bench.execute.protocol import Side
from bench.execute.sglang_source import sides as sglang_sides
from bench.execute.tasks import Around
from bench.execute.trees import Tree, commit_of, config_at, has_commit, trees
from bench.model.config import Config, Measure, Plan, PlannedPoint
from bench.model.environment import attached_profiler, command_line, has_gpu, utc_now
from bench.model.gpus import Gpu
from bench.model.pairs import PairPoint, PairRun
from bench.model.records import Results
from bench.model.verdict import CannotJudge, Use

Sweep = Callable[[Plan, Results, Path, Mapping[str, Path] | None, Around], Iterable[loop.Event]]
OpenTrees = Callable[[str | None, str | None], AbstractContextManager[tuple[Tree, Tree]]]
# (before, after or the installed one, where versions are looked for) -> the trees of two versions of SGLang
OpenSglang = Callable[[str, str | None, Sequence[str]], AbstractContextManager[tuple[Tree, Tree]]]
LAYOUT_SEEDS = 1_000_000


def worker_on_gpu(tree: Tree, settings: Measure, contenders: tuple[str, ...], gpu: Gpu | None = None) -> Side:
    """A side that takes times on a GPU."""
    return WorkerSide(tree, "gpu", settings, contenders, gpu.environment if gpu else None)


@dataclass
class Machine:
    """The machine, as a gate run needs it. Tests pass another one."""

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
        """Raises CannotJudge without a GPU, or under a profiler."""
        if profiler := attached_profiler():
            raise CannotJudge(f"runs under {profiler}: a profiled run yields no timing")
        if not self.has_gpu():
            raise CannotJudge("no NVIDIA GPU was found; without one, only --clock work can judge")


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


def baseline_plan(config: Config, baseline: Results, points: Sequence[PlannedPoint], *, fresh: bool) -> Plan:
    """The baseline's points, measured by this configuration. With `fresh`, each round comes from a new process."""
    gate = config.gate
    rounds = 1 if fresh else -(-gate.baseline_rounds // gate.baseline_processes)
    processes = gate.confirm_processes if fresh else gate.baseline_processes
    settings = msgspec.structs.replace(config.measure, rounds=rounds, processes=processes)
    return Plan(baseline.run.selection.profile, settings, tuple(points), shuffle=True, worker_env={})
