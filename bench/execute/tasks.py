"""What one process of a sweep is asked: its tasks, the events it tells, and what a worker of it is started with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from bench.execute import installs
from bench.execute.isolate import Ask, Start, Worker, WorkerDied, WorkerKind, WorkerLost, contender_names
from bench.execute.lanes import OpenWorker
from bench.model.case import Case
from bench.model.config import Plan, PlannedPoint
from bench.model.gpus import Gpu
from bench.model.records import Point, Results
from bench.model.registry import sglang_of

Task = tuple[int, PlannedPoint]  # index in the plan
Paths = Mapping[str, Path]  # version of SGLang -> the folder that its workers import it from


class WorkerStarted(msgspec.Struct, frozen=True):
    """A worker is ready; `seconds` went into imports and anchors. gpu: the one it has, where several measure."""

    kind: WorkerKind
    process: int
    seconds: float
    gpu: int | None = None


class Measured(msgspec.Struct, frozen=True):
    """One measurement is in the file; `point` is its record with the rounds of all processes so far."""

    point: Point


class GpuLost(msgspec.Struct, frozen=True):
    """A GPU takes no more points. Of the cases it had begun, `points` were measured: all of them are dealt again."""

    gpu: str
    reason: str
    points: int


Event = WorkerStarted | Measured | GpuLost


@dataclass(frozen=True)
class Around:
    """On what a process runs. paths: of other versions of SGLang. gpus: none is the one that CUDA calls the first.

    one_at_a_time: of several GPUs, only one measures at any moment. homes: the GPU, by its UUID, that a case is to be
    measured on although the file does not say so yet.
    """

    paths: Paths = field(default_factory=dict)
    gpus: tuple[Gpu, ...] = ()
    open_worker: OpenWorker | None = None  # makes those that take times
    one_at_a_time: bool = False
    homes: Mapping[Case, str] = field(default_factory=dict)
    lanes: int | None = None  # that count side by side; None: as bench.toml says


HERE = Around()


@dataclass(frozen=True)
class Process:
    """One process of a plan, into a file."""

    plan: Plan
    results: Results
    number: int
    around: Around

    def start(self, kind: WorkerKind, tasks: Sequence[Task]) -> Start:
        """What a worker of these tasks is told first."""
        names = contender_names([planned for _, planned in tasks])
        return Start(kind, self.plan.measure, self.number, names)

    def version_of(self, task: Task) -> str | None:
        """Which worker takes a task: that of the SGLang it names, or the ordinary one, which says why it cannot."""
        version = sglang_of(task[1].contender)
        return version if version in self.around.paths else None

    def environment(self, version: str | None, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Of the workers of a version of SGLang."""
        own = self.plan.worker_env | dict(more or {})
        return own if version is None else installs.first_on_path(self.around.paths[version], own)


def ask(worker: Worker, task: Task, timeout_s: float) -> tuple[Point, bool]:
    """The point's record, and whether the worker can take another. Raises WorkerLost: another is to take it."""
    index, planned = task
    try:
        answer = worker.ask(Ask(planned, index), timeout_s)
    except WorkerLost:
        raise
    except WorkerDied as death:
        return Point(planned.case, planned.contender, planned.clock, index, "crashed", str(death)), False
    return answer.point, not answer.lost
