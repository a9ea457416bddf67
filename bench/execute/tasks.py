"""One process of a sweep: its tasks, its events, and the start messages of its workers."""

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
    """A worker is ready. `seconds` went into imports and anchors. gpu: the one it uses, if several measure."""

    kind: WorkerKind
    process: int
    seconds: float
    gpu: int | None = None


class Measured(msgspec.Struct, frozen=True):
    """One measurement is in the file; `point` is its record with the rounds of all processes so far."""

    point: Point


class GpuLost(msgspec.Struct, frozen=True):
    """A GPU takes no more points. `points` of the cases it had begun were measured; all of these are dealt again."""

    gpu: str
    reason: str
    points: int


Event = WorkerStarted | Measured | GpuLost


@dataclass(frozen=True)
class Around:
    """What a process runs on. paths: of other versions of SGLang. gpus: if empty, CUDA's first GPU.

    one_at_a_time: if there are several GPUs, only one measures at a time. homes: the GPU, by its UUID, on which a case
    must be measured although the file does not say so yet.
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
    """One process of a plan, which writes into a file."""

    plan: Plan
    results: Results
    number: int
    around: Around

    def start(self, kind: WorkerKind, tasks: Sequence[Task]) -> Start:
        """The start message of a worker for these tasks."""
        names = contender_names([planned for _, planned in tasks])
        return Start(kind, self.plan.measure, self.number, names)

    def version_of(self, task: Task) -> str | None:
        """The version of SGLang whose worker takes a task: the one that the task names.

        If that version is not at hand, the ordinary worker takes the task, and says why it cannot run.
        """
        version = sglang_of(task[1].contender)
        return version if version in self.around.paths else None

    def environment(self, version: str | None, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment of the workers of a version of SGLang."""
        own = self.plan.worker_env | dict(more or {})
        return own if version is None else installs.first_on_path(self.around.paths[version], own)


def ask(worker: Worker, task: Task, timeout_s: float) -> tuple[Point, bool]:
    """The point's record, and whether the worker can take another. Raises WorkerLost if another worker must take it."""
    index, planned = task
    try:
        answer = worker.ask(Ask(planned, index), timeout_s)
    except WorkerLost:
        raise
    except WorkerDied as death:
        return Point(planned.case, planned.contender, planned.clock, index, "crashed", str(death)), False
    return answer.point, not answer.lost
