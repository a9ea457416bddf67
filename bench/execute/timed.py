"""The timed clocks' part of a process: each GPU has a worker and its own cases.

A case stays on one GPU with all of its contenders, clocks and rounds, so that a ratio is of one device. If only one GPU
measures, it waits until its point is in the file, so that nothing else happens on the host meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, nullcontext
from threading import Lock

import msgspec

from bench.execute import filed
from bench.execute.isolate import Hello, Worker, WorkerDied
from bench.execute.lanes import Crew, Dealer, Lanes, OpenWorker, Say
from bench.execute.tasks import Event, GpuLost, Measured, Process, Task, WorkerStarted, ask
from bench.model.case import Case
from bench.model.gpus import Gpu
from bench.model.records import Point

Unit = tuple[Task, ...]
ONLY = ""  # the lane of the one GPU, where none was chosen


class Ready(msgspec.Struct, frozen=True):
    """A lane's worker is ready."""

    lane: str
    hello: Hello
    version: str | None
    seconds: float


class Taken(msgspec.Struct, frozen=True):
    """A lane has taken a point."""

    lane: str
    point: Point


class Lost(msgspec.Struct, frozen=True):
    """A lane's GPU cannot start a worker any more."""

    lane: str
    reason: str


Message = Ready | Taken | Lost


def timed(process: Process, tasks: Sequence[Task], open_worker: OpenWorker) -> Iterator[Event]:
    """Measure the tasks. Raises WorkerDied if no GPU can start a worker any more, ResultsError for another machine."""
    if not tasks:
        return
    gpus: dict[str, Gpu | None] = {gpu.uuid: gpu for gpu in process.around.gpus}
    gpus = gpus or {ONLY: None}
    dealer = _dealt(process, tasks, [*gpus])
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(len(gpus)))
        crew = stack.enter_context(Crew(open_worker))
        turn = Lock() if process.around.one_at_a_time else nullcontext()
        lanes = [_Lane(name, gpu, process, tasks, dealer, crew, turn) for name, gpu in gpus.items()]
        with closing(Lanes[Message](dealer).run(lanes, pool)) as messages:
            yield from _heard(process, messages, gpus)


def _heard(process: Process, messages: Iterator[Message], gpus: Mapping[str, Gpu | None]) -> Iterator[Event]:
    """What the lanes say, into the results."""
    results, number = process.results, process.number
    places: dict[str, int | None] = {}
    alive = set(gpus)
    for message in messages:
        gpu = gpus[message.lane]
        if isinstance(message, Ready):
            places[message.lane] = filed.adopt(results, message.hello, number, message.version)
            yield WorkerStarted("gpu", number, message.seconds, gpu.index if gpu else None)
        elif isinstance(message, Taken):
            message.point.gpu = places[message.lane]
            yield Measured(filed.record(results, message.point))
        else:
            alive.discard(message.lane)
            if gpu and alive:  # else the sweep ends, and what was measured is for another one to go on with
                dropped = filed.forget(results, filed.unfinished(process.plan, results, message.lane, number))
                yield GpuLost(f"GPU {gpu.index}", message.reason, dropped)


def _dealt(process: Process, tasks: Sequence[Task], lanes: Sequence[str]) -> Dealer[Unit]:
    """One GPU takes all in the order of the plan; several take cases, first those that they have begun."""
    if len(lanes) == 1:
        return Dealer(lanes, [tuple(tasks)])
    cases: dict[Case, list[Task]] = {}
    for task in tasks:
        cases.setdefault(task[1].case, []).append(task)
    homes = {**process.around.homes, **filed.homes(process.results)}
    own: dict[str, list[Unit]] = {lane: [] for lane in lanes}
    shared: list[Unit] = []
    for case, of_case in cases.items():
        own.get(homes.get(case, ""), shared).append(tuple(of_case))
    return Dealer(lanes, shared, own)


class _Lane:
    """One GPU: measures what it is dealt, with a worker for each version of SGLang, one of which measures at a time."""

    def __init__(
        self,
        name: str,
        gpu: Gpu | None,
        process: Process,
        tasks: Sequence[Task],
        dealer: Dealer[Unit],
        crew: Crew,
        turn: Lock | nullcontext[None],
    ) -> None:
        self._name, self._process, self._tasks, self._dealer = name, process, tasks, dealer
        self._crew, self._turn = crew, turn
        self._alone = len(process.around.gpus) < 2
        self._environment = gpu.environment if gpu else {}
        self._workers: dict[str | None, Worker] = {}

    def __call__(self, say: Say[Message]) -> None:
        """Raises WorkerDied if a worker cannot start."""
        again: list[Task] = []  # of the unit at hand: what another GPU would have to measure
        try:
            while (unit := self._dealer.take(self._name)) is not None:
                again = list(unit)
                for task in unit:
                    if say.stopping.is_set():
                        return
                    if self._measured(task, say).status != "ok":
                        again.remove(task)
                again = []
        except WorkerDied as death:
            say(Lost(self._name, str(death)))
            raise
        finally:
            self._dealer.leave(self._name, *([tuple(again)] if again else []))
            self._dismiss()

    def _measured(self, task: Task, say: Say[Message]) -> Point:
        version = self._process.version_of(task)
        worker = self._workers.get(version) or self._opened(version, say)
        with self._turn:
            point, alive = ask(worker, task, self._process.plan.measure.point_timeout_s)
        if not alive:
            self._dismiss()  # what else is on this GPU is not to be trusted either
        say(Taken(self._name, point), until_heard=self._alone)
        return point

    def _opened(self, version: str | None, say: Say[Message]) -> Worker:
        own = [task for task in self._tasks if self._process.version_of(task) == version]
        begun = time.monotonic()
        environment = self._process.environment(version, self._environment)
        worker = self._crew.hire(self._process.start("gpu", own), environment)
        self._workers[version] = worker
        say(Ready(self._name, worker.hello, version, time.monotonic() - begun), until_heard=True)
        return worker

    def _dismiss(self) -> None:
        for worker in self._workers.values():
            self._crew.dismiss(worker)
        self._workers.clear()
