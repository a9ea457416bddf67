"""The loop: which points are left, in which order, into the store. Yields events, prints nothing, decides nothing."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from hashlib import sha256
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event as ThreadEvent

import msgspec

from bench.execute import installs
from bench.execute.isolate import Ask, Hello, Start, Worker, WorkerDied, WorkerKind, contender_names
from bench.model import outside, store
from bench.model.case import shuffled_by_tables
from bench.model.config import Plan, PlannedPoint
from bench.model.environment import collect_code, command_line, suite_version, utc_now, with_installed_sglang
from bench.model.records import OtherSglang, Point, Results, ResultsError, Run, Schema, Selection, worse
from bench.model.registry import sglang_of


class Planned(msgspec.Struct, frozen=True):
    """At the start of each process: how many measurements the run has, and how many of them need not be made.

    Done are those in the file, and those of later processes whose point has already failed.
    """

    total: int
    done: int


class WorkerStarted(msgspec.Struct, frozen=True):
    """A worker is ready; `seconds` went into imports and anchors."""

    kind: WorkerKind
    process: int
    seconds: float


class Measured(msgspec.Struct, frozen=True):
    """One measurement is in the file; `point` is its record with the rounds of all processes so far."""

    point: Point


Event = Planned | WorkerStarted | Measured
Task = tuple[int, PlannedPoint]  # index in the plan
OpenWorker = Callable[[Start, dict[str, str]], Worker]
Paths = Mapping[str, Path]  # version of SGLang -> the folder that its workers import it from


def new_results(plan: Plan, selection: Selection) -> Results:
    """An empty results file of a plan, for the sweep to fill."""
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


def sweep(plan: Plan, results: Results, path: Path, other_sglang: Paths | None = None) -> Generator[Event, None, None]:
    """Measure what `results` lacks, writing `path` at the start and after every measurement.

    other_sglang: a folder or wheel of each version that contenders name. A contender of another one is skipped.
    Raises ResultsError if the machine, or such a version, is not the one the file was begun with.
    """
    with installs.import_paths(other_sglang or {}) as paths:
        yield from _sweep(plan, results, path, paths)


def _sweep(plan: Plan, results: Results, path: Path, paths: Paths) -> Iterator[Event]:
    begun = time.monotonic()
    spent_s = results.run.duration_s
    if not path.exists():  # whenever the sweep ends, there is a file to go on with
        store.write(path, results)
    total = len(plan.points) * plan.measure.processes
    for process in range(plan.measure.processes):
        left = [left_of(plan, results, later) for later in range(process, plan.measure.processes)]
        yield Planned(total, total - sum(map(len, left)))
        for event in one_process(plan, results, process, left[0], paths=paths):
            results.run.duration_s = spent_s + time.monotonic() - begun
            if isinstance(event, Measured):
                store.write(path, results)
            yield event
    store.write(path, results)


def left_of(plan: Plan, results: Results, process: int) -> list[Task]:
    """The tasks of a process that the file lacks, in the order it takes them."""
    known = {point.key: point for point in results.points}
    tasks = []
    for index, planned in enumerate(plan.points):
        point = known.get((planned.case, planned.contender, planned.clock))
        measured = point is not None and (point.status != "ok" or _covers(point, process))
        if not measured:
            tasks.append((index, planned))
    if plan.shuffle:
        return shuffled_by_tables(tasks, lambda task: task[1].case, random.Random(plan.measure.seed + process))
    return tasks


def _covers(point: Point, process: int) -> bool:
    return point.clock == "work" or any(item.process == process for item in point.rounds)


def one_process(
    plan: Plan,
    results: Results,
    process: int,
    tasks: Sequence[Task],
    open_worker: OpenWorker | None = None,
    *,
    paths: Paths | None = None,
) -> Iterator[Event]:
    """All of one process's measurements: the timed ones one after another, the counted ones in lanes.

    `open_worker` makes the workers that take times; each of `paths` has workers of its own. Raises WorkerDied if one
    cannot start.
    """
    paths = paths or {}
    timed = [task for task in tasks if task[1].clock != "work"]
    yield from _timed(plan, results, process, timed, open_worker or Worker, paths)
    for version in (None, *paths):
        counted = [task for task in tasks if task[1].clock == "work" and _worker_of(task, paths) == version]
        yield from _counted(plan, results, process, counted, version, paths)


def _worker_of(task: Task, paths: Paths) -> str | None:
    """Which worker takes a task: that of the SGLang it names, or the ordinary one, which says why it cannot."""
    version = sglang_of(task[1].contender)
    return version if version in paths else None


def _timed(
    plan: Plan, results: Results, process: int, tasks: Sequence[Task], open_worker: OpenWorker, paths: Paths
) -> Iterator[Event]:
    """In their order, each by the worker of its SGLang: one measures, the others wait."""
    ways = {version: [task for task in tasks if _worker_of(task, paths) == version] for version in (None, *paths)}
    remaining = list(tasks)
    while remaining:  # each turn ends with a worker's life
        with ExitStack() as stack:
            workers: dict[str | None, Worker] = {}
            alive = True
            while remaining and alive:
                version = _worker_of(remaining[0], paths)
                if version not in workers:
                    start = _start(plan, "gpu", process, ways[version])
                    begun = time.monotonic()
                    workers[version] = stack.enter_context(open_worker(start, _environment(plan, version, paths)))
                    _adopt(results, workers[version].hello, process, version)
                    yield WorkerStarted("gpu", process, time.monotonic() - begun)
                index, planned = remaining.pop(0)
                point, alive = _ask(workers[version], planned, index, plan.measure.point_timeout_s)
                yield Measured(_record(results, point))


def _environment(plan: Plan, version: str | None, paths: Paths) -> dict[str, str]:
    return plan.worker_env if version is None else installs.first_on_path(paths[version], plan.worker_env)


def _ask(worker: Worker, planned: PlannedPoint, index: int, timeout_s: float) -> tuple[Point, bool]:
    """The point's record, and whether the worker can take another."""
    try:
        answer = worker.ask(Ask(planned, index), timeout_s)
    except WorkerDied as death:
        return Point(planned.case, planned.contender, planned.clock, index, "crashed", str(death)), False
    return answer.point, not answer.lost


def _counted(
    plan: Plan, results: Results, process: int, tasks: Sequence[Task], version: str | None, paths: Paths
) -> Iterator[Event]:
    """The work clock: interpreter workers side by side, one compiling worker between them."""
    if not tasks:
        return
    lane_start = _start(plan, "interpret", process, tasks)
    starts = [lane_start] * plan.measure.work_lanes + [_start(plan, "compile", process, tasks)]
    with ExitStack() as stack:
        begun = time.monotonic()
        compiling = stack.enter_context(ThreadPoolExecutor(1))
        pool = stack.enter_context(ThreadPoolExecutor(len(starts)))

        def begin(start: Start) -> Worker:
            # On the stack at once: whoever did start is closed should another fail.
            return stack.enter_context(Worker(start, _environment(plan, version, paths)))

        workers = [future.result() for future in [pool.submit(begin, start) for start in starts]]
        _adopt(results, workers[0].hello, process, version)
        yield WorkerStarted("interpret", process, time.monotonic() - begun)
        compiler = _Compiler(workers.pop(), compiling)
        lanes = _Lanes(tasks, plan.measure.point_timeout_s, compiler, lambda: begin(lane_start))
        with closing(lanes.count(workers, pool)) as points:  # stopped before its workers are killed
            for point in points:
                yield Measured(_record(results, point))


class _Lanes:
    """Threads that count, each with a worker of its own, taking tasks until none is left."""

    def __init__(
        self, tasks: Sequence[Task], timeout_s: float, compiler: _Compiler, restart: Callable[[], Worker]
    ) -> None:
        self._tasks: SimpleQueue[Task] = SimpleQueue()
        for task in tasks:
            self._tasks.put(task)
        self._timeout_s = timeout_s
        self._compiler = compiler
        self._restart = restart
        self._stopping = ThreadEvent()
        self._counted: SimpleQueue[Future[Point] | None] = SimpleQueue()  # None: a lane has ended

    def count(self, workers: Sequence[Worker], pool: ThreadPoolExecutor) -> Generator[Point, None, None]:
        """The points as they are counted. Raises WorkerDied if tasks are left and no lane is."""
        lanes = [pool.submit(self._lane, worker) for worker in workers]
        running = len(lanes)
        try:
            while running:
                counted = self._counted.get()
                if counted is None:
                    running -= 1
                else:
                    yield counted.result()
        finally:
            self._stopping.set()
        for error in filter(None, (lane.exception() for lane in lanes)):
            if not self._tasks.empty() or not isinstance(error, WorkerDied):
                raise error

    def _lane(self, worker: Worker) -> None:
        """Raises WorkerDied if a dead worker cannot be replaced; nobody waits for its lane, the others go on."""
        try:
            while not self._stopping.is_set():
                index, planned = self._tasks.get_nowait()
                point, alive = _ask(worker, planned, index, self._timeout_s)
                self._counted.put(self._compiler.add(planned, point, self._timeout_s))
                if not (alive or self._stopping.is_set() or self._tasks.empty()):
                    worker = self._restart()
        except Empty:
            return
        finally:
            self._counted.put(None)


class _Compiler:
    """The compiling worker: one point at a time, and counts stand without it should it die."""

    def __init__(self, worker: Worker, pool: ThreadPoolExecutor) -> None:
        self._worker: Worker | None = worker
        self._pool = pool  # of one thread

    def add(self, planned: PlannedPoint, point: Point, timeout_s: float) -> Future[Point]:
        """The point with its compiled figures, or with the reason why it has none."""
        return self._pool.submit(self._add, planned, point, timeout_s)

    def _add(self, planned: PlannedPoint, point: Point, timeout_s: float) -> Point:
        if point.status != "ok" or point.work is None:
            return point
        if self._worker is None:
            point.work.compiled_reason = "the compiling worker ended at an earlier point"
            return point
        try:
            return self._worker.ask(Ask(planned, point.index, counted=point), timeout_s).point
        except WorkerDied as death:
            self._worker = None
            point.work.compiled_reason = str(death)
            return point


def _start(plan: Plan, kind: WorkerKind, process: int, tasks: Sequence[Task]) -> Start:
    return Start(kind, plan.measure, process, contender_names([planned for _, planned in tasks]))


def _adopt(results: Results, hello: Hello, process: int, version: str | None = None) -> None:
    """Take the worker's environment, or check that it is the file's; keep the anchors of a process's first worker.

    version: of the SGLang that the worker has instead of the installed one.
    """
    env = hello.env
    if version is not None:
        _adopt_sglang(results, OtherSglang(version, str(env.volatile.get("sglang_lora_sha256"))))
        env = with_installed_sglang(env)
    if results.env is None:
        results.env = env
    elif results.env.env_key != env.env_key:
        ours, theirs = results.env.identity, env.identity
        changed = [f"{name} {ours.get(name)} -> {theirs[name]}" for name in theirs if ours.get(name) != theirs[name]]
        raise ResultsError(f"this machine is not the one the file was begun on: {', '.join(changed)}")
    known = {anchor.name: anchor for anchor in results.anchors}
    for anchor in hello.anchors:
        if anchor.name not in known:
            results.anchors.append(anchor)
        elif len(known[anchor.name].values) <= process:
            known[anchor.name].values += anchor.values


def _adopt_sglang(results: Results, found: OtherSglang) -> None:
    """Take the files of a version, or check that they are the file's. Raises ResultsError."""
    known = next((other for other in results.other_sglang if other.version == found.version), None)
    if known is None:
        results.other_sglang.append(found)
    elif known != found:
        raise ResultsError(
            f"SGLang {found.version} has other LoRA files than those the file was begun with: sha256 "
            f"{known.lora_sha256[:12]} -> {found.lora_sha256[:12]}"
        )


def _record(results: Results, new: Point) -> Point:
    """Merge a process's record into the file's; a failure in any process is the point's status."""
    for point in results.points:
        if point.key == new.key:
            point.rounds += new.rounds
            point.floor_us += new.floor_us
            point.wall_s += new.wall_s
            point.check = worse(point.check, new.check)
            if new.status != "ok":
                point.status, point.reason, point.check = new.status, new.reason, new.check or point.check
            return point
    results.points.append(new)
    return new
