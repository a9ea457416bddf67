"""The loop of a sweep: measures the points that are left, in order, and stores them. Yields events, prints nothing."""

from __future__ import annotations

import time
import uuid
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import msgspec

from bench.execute import filed, installs
from bench.execute.counted import counted
from bench.execute.isolate import Worker
from bench.execute.tasks import HERE, Around, GpuLost, Measured, Paths, Process, Task
from bench.execute.tasks import Event as TaskEvent
from bench.execute.timed import timed
from bench.model import outside, store
from bench.model.config import Plan
from bench.model.environment import collect_code, command_line, suite_version, utc_now
from bench.model.gpus import first_gpu
from bench.model.records import Results, Run, Schema, Selection


class Planned(msgspec.Struct, frozen=True):
    """At the start of each process: how many measurements the run has, and how many of them are done.

    Done are those in the file, and those of later processes whose point has already failed.
    """

    total: int
    done: int


Event = Planned | TaskEvent


def new_results(plan: Plan, selection: Selection) -> Results:
    """An empty results file for a plan, which the sweep fills."""
    run = Run(
        id=str(uuid.uuid4()),
        kind="sweep",
        selection=selection,
        started_utc=utc_now(),
        duration_s=0.0,
        argv=command_line(),
        seed=plan.measure.seed,
        plan_sha256=plan_digest(plan),
        tool_version=suite_version(),
    )
    files = outside.described(point.contender for point in plan.points)
    return Results(Schema(), run, collect_code(), outside=files)


def plan_digest(plan: Plan) -> str:
    """Equal for plans that measure the same points in the same way."""
    return sha256(msgspec.json.encode(plan, order="sorted")).hexdigest()


def sweep(
    plan: Plan, results: Results, path: Path, other_sglang: Paths | None = None, around: Around = HERE
) -> Generator[Event, None, None]:
    """Measure what `results` lacks, and write `path` at the start and after every measurement.

    other_sglang: a folder or wheel of each version that contenders name. A contender of a version without one is
    skipped. around: the GPUs to measure on. Cases that were begun on a GPU that is not among them are measured again
    from the start. Raises ResultsError if the machine, or such a version, is not the one that the file was begun with.
    """
    with installs.import_paths(other_sglang or {}) as paths:
        yield from _sweep(plan, results, path, replace(around, paths=paths))


def _sweep(plan: Plan, results: Results, path: Path, around: Around) -> Iterator[Event]:
    begun = time.monotonic()
    spent_s = results.run.duration_s
    file = store.Growing(path)
    yield from _moved(plan, results, around)
    if not path.exists():  # whenever the sweep ends, there is a file to go on with
        file.write(results)
    total = len(plan.points) * plan.measure.processes
    whole = False
    while not whole:  # more than once only if a GPU is lost: what it had measured of its cases is measured anew
        whole = True
        for process in range(plan.measure.processes):
            left = [filed.left_of(plan, results, later) for later in range(process, plan.measure.processes)]
            yield Planned(total, total - sum(map(len, left)))
            for event in one_process(plan, results, process, left[0], around):
                results.run.duration_s = spent_s + time.monotonic() - begun
                if isinstance(event, Measured):
                    file.write(results, event.point)
                whole = whole and not isinstance(event, GpuLost)
                yield event
    file.write(results)


def _moved(plan: Plan, results: Results, around: Around) -> Iterator[Event]:
    """At the start: what GPUs that are not here have begun is dropped: the rest would be of another device."""
    here = {gpu.uuid for gpu in around.gpus or first_gpu()}
    for used in results.gpus if here else []:
        if used.uuid is not None and used.uuid not in here:
            dropped = filed.forget(results, filed.unfinished(plan, results, used.uuid))
            if dropped:
                yield GpuLost(used.uuid, "it is not among the GPUs of this run", dropped)


def one_process(
    plan: Plan, results: Results, process: int, tasks: Sequence[Task], around: Around = HERE
) -> Iterator[TaskEvent]:
    """All measurements of one process: first the timed ones, GPU by GPU, then the counted ones in lanes.

    Raises WorkerDied if no worker can start.
    """
    job = Process(plan, results, process, around)
    timed_tasks = [task for task in tasks if task[1].clock != "work"]
    yield from timed(job, timed_tasks, around.open_worker or Worker)
    for version in (None, *around.paths):
        own = [task for task in tasks if task[1].clock == "work" and job.version_of(task) == version]
        yield from counted(job, own, version, around.open_worker or Worker)
