"""The work clock's part of a process: parallel interpreter workers, which share one compiling worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing

from bench.execute import filed
from bench.execute.isolate import Ask, Worker, WorkerDied, WorkerLost
from bench.execute.lanes import Crew, Dealer, Lanes, OpenWorker, Say
from bench.execute.tasks import Event, Measured, Process, Task, WorkerStarted, ask
from bench.model.config import PlannedPoint
from bench.model.records import Point

Counted = Future[Point]


def counted(process: Process, tasks: Sequence[Task], version: str | None, open_worker: OpenWorker) -> Iterator[Event]:
    """Count the tasks of one version of SGLang. Raises WorkerDied if a worker cannot start."""
    if not tasks:
        return
    measure, environment = process.plan.measure, process.environment(version)
    lane_start = process.start("interpret", tasks)
    starts = [lane_start] * (process.around.lanes or measure.work_lanes) + [process.start("compile", tasks)]
    with ExitStack() as stack:
        begun = time.monotonic()
        compiling = stack.enter_context(ThreadPoolExecutor(1))
        pool = stack.enter_context(ThreadPoolExecutor(len(starts)))
        crew = stack.enter_context(Crew(open_worker))
        workers = [future.result() for future in [pool.submit(crew.hire, start, environment) for start in starts]]
        filed.adopt(process.results, workers[0].hello, process.number, version)
        yield WorkerStarted("interpret", process.number, time.monotonic() - begun)
        compiler = _Compiler(workers.pop(), compiling)
        names = [str(number) for number, _ in enumerate(workers)]
        dealer = Dealer(names, tasks)

        def replaced(worker: Worker) -> Worker:
            crew.dismiss(worker)
            return crew.hire(lane_start, environment)

        lanes = [
            _Lane(name, worker, dealer, compiler, replaced, measure.point_timeout_s)
            for name, worker in zip(names, workers, strict=True)
        ]
        with closing(Lanes[Counted](dealer).run(lanes, pool)) as points:  # stopped before its workers are killed
            for point in points:
                yield Measured(filed.record(process.results, point.result()))


class _Lane:
    """Counts what it is dealt."""

    def __init__(
        self,
        name: str,
        worker: Worker,
        dealer: Dealer[Task],
        compiler: _Compiler,
        replaced: Callable[[Worker], Worker],
        timeout_s: float,
    ) -> None:
        self._name, self._worker, self._dealer, self._compiler = name, worker, dealer, compiler
        self._replaced, self._timeout_s = replaced, timeout_s

    def __call__(self, say: Say[Counted]) -> None:
        """Raises WorkerDied if a dead worker cannot be replaced; nobody waits for its lane, the others go on."""
        alive = True
        try:
            while (task := self._dealer.take(self._name)) is not None:
                if not alive:
                    self._again(task)
                try:
                    point, alive = ask(self._worker, task, self._timeout_s)
                except WorkerLost:
                    self._dealer.leave(self._name, task)  # another lane takes it
                    raise
                say(self._compiler.add(task[1], point, self._timeout_s))
        finally:
            self._dealer.leave(self._name)

    def _again(self, task: Task) -> None:
        """A new worker for a task; without one the task is for another lane."""
        try:
            self._worker = self._replaced(self._worker)
        except WorkerDied:
            self._dealer.leave(self._name, task)
            raise


class _Compiler:
    """The compiling worker: one point at a time, and counts stand without it should it die."""

    def __init__(self, worker: Worker, pool: ThreadPoolExecutor) -> None:
        self._worker: Worker | None = worker
        self._pool = pool  # of one thread

    def add(self, planned: PlannedPoint, point: Point, timeout_s: float) -> Counted:
        """The point with its compiled figures, or with the reason why they are missing."""
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
