"""The loop of `bench serve`: one fresh process for each mode and repeat, whose samples go into the file.

Yields events.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import msgspec

from bench.engine import peft_reference
from bench.engine.ahead import Ahead, OpenChild, Waiting
from bench.engine.cross_check import CLIENT, SERVER
from bench.engine.crossing import CrossDone, CrossEvent, Crossing, of_plan
from bench.engine.listening import Listener
from bench.engine.messages import Prepared, PrepareJob, ServeJob
from bench.engine.processes import EngineChild, EngineLost
from bench.engine.watch import Guard, Seen, Watcher, look, until_free
from bench.model import served
from bench.model.environment import collect_code, command_line, suite_version, utc_now
from bench.model.records import ResultsError
from bench.model.served import EngineProcess, ServedLoad, ServeResults, ServeRun
from bench.model.serving import EngineRun, Load, Mode, ServePlan

OPENER = "bench.engine.sglang_engine:open_engine"
USUAL_REQUESTS = 32  # of the load that is traced or profiled, if several are asked


class Planned(msgspec.Struct, frozen=True):
    """How many processes the run has, and how many of them are in the file."""

    total: int
    done: int


class CacheReady(msgspec.Struct, frozen=True):
    """What an engine loads is in the cache's folder. `seconds`: the time it took to write what was missing."""

    seconds: float


class ProcessStarted(msgspec.Struct, frozen=True):
    """An engine is being started."""

    run: EngineRun


class LoadDone(msgspec.Struct, frozen=True):
    """A load has its samples, or the reason why it has none."""

    run: EngineRun
    load: ServedLoad


class ProcessDone(msgspec.Struct, frozen=True):
    """The record of a process is in the file."""

    process: EngineProcess


class OutOfTime(msgspec.Struct, frozen=True):
    """Another process would not end within the time limit; `left` are missing."""

    left: int


Event = Planned | CacheReady | ProcessStarted | LoadDone | ProcessDone | CrossEvent | OutOfTime


class Surroundings(msgspec.Struct, frozen=True):
    """What a run needs besides its plan. Tests replace `opener`, `right`, `child` and `look`."""

    cache: Path
    where: bool = False
    budget_s: float | None = None
    opener: str = OPENER
    right: str = peft_reference.OPENER
    child: OpenChild = EngineChild
    look: Callable[[], Seen] = look
    server: str = SERVER
    client: str = CLIENT

    def opener_of(self, mode: str) -> str:
        """The function that starts the engine of a mode, or the reference in its place."""
        return self.opener if Mode(mode).engine else self.right


def new_results(
    plan: ServePlan,
    *,
    kinds: list[str],
    modes: list[str],
    model: str | None,
    tp: int | None = None,
    where: bool,
    cross_check: bool = False,
) -> ServeResults:
    """An empty file for a plan."""
    run = ServeRun(
        id=str(uuid.uuid4()),
        kind="serve",
        profile=plan.profile,
        modes=plan.modes,
        started_utc=utc_now(),
        duration_s=0.0,
        argv=command_line(),
        plan_sha256=plan.digest,
        tool_version=suite_version(),
        planned=len(plan.runs),
        kinds=kinds,
        repeats=max(item.repeat for item in plan.runs) + 1,
        model=model,
        tp=tp,
        chosen_modes=modes,
        where=where,
        cross_check=cross_check,
    )
    return ServeResults(run, plan.setup, plan.serving, collect_code())


def serve(plan: ServePlan, results: ServeResults, path: Path, around: Surroundings) -> Generator[Event, None, None]:
    """Run the processes that the file lacks, in the plan's order. Raises ResultsError for a file of another machine."""
    known = {(item.mode, item.repeat) for item in results.processes}
    left = [run for run in plan.runs if (run.mode, run.repeat) not in known]
    crossing = of_plan(plan, {item.mode for item in results.cross_checks}) if results.run.cross_check else []
    yield Planned(len(plan.runs), len(plan.runs) - len(left))
    if not left and not crossing:
        return
    clock = _Clock(results, around.budget_s)
    with closing(Ahead(around.opener_of, around.child)) as ahead:
        if left:
            ahead.start(left[0])  # it imports while weights are written
        prepared = _prepare(plan, around)
        yield CacheReady(prepared.written_s)
        _adopt(results, prepared)
        while left:
            if clock.over:
                yield OutOfTime(len(left) + len(crossing))
                return
            run = left.pop(0)
            yield ProcessStarted(run)
            engine = _Engine(plan, run, prepared, around)
            with closing(engine.events(ahead, left[0] if left else None)) as events:
                for event in events:
                    yield event
                    if isinstance(event, ProcessDone):
                        results.processes.append(event.process)
            clock.read()
            served.write(path, results)
    cross = Crossing(
        plan, prepared, str(around.cache.resolve()), around.child, around.look, around.server, around.client
    )
    while crossing:
        if clock.over:
            yield OutOfTime(len(crossing))
            return
        with closing(cross.events(crossing.pop(0))) as of_server:
            for said in of_server:
                yield said
                if isinstance(said, CrossDone):
                    results.cross_checks.append(said.process)
        clock.read()
        served.write(path, results)


class _Clock:
    """How long a run has taken, before it was interrupted too, and whether another process would end in time."""

    def __init__(self, results: ServeResults, budget_s: float | None) -> None:
        self._results, self._budget_s = results, budget_s
        self._began, self._before = time.monotonic(), results.run.duration_s

    @property
    def over(self) -> bool:
        """Whether a process as long as the longest so far would end too late."""
        ended = [item.duration_s for item in self._results.processes]
        ended += [item.duration_s for item in self._results.cross_checks]
        longest = max(ended, default=0.0)
        return self._budget_s is not None and time.monotonic() - self._began + longest > self._budget_s

    def read(self) -> None:
        """Write the time down."""
        self._results.run.duration_s = self._before + time.monotonic() - self._began


def _prepare(plan: ServePlan, around: Surroundings) -> Prepared:
    """Weights, adapters and the fingerprint, made in a process that is gone before an engine starts."""
    with around.child({"CSGMV_EMBED_DISABLE": "1"}) as child:
        try:
            child.begin(PrepareJob(plan.setup, str(around.cache.resolve()), around.where))
            found = child.hear(plan.serving.start_timeout_s)
        except EngineLost as lost:
            raise ResultsError(f"the model and its adapters cannot be written below {around.cache}: {lost}") from None
        child.leave()
    assert isinstance(found, Prepared)
    return found


def _adopt(results: ServeResults, prepared: Prepared) -> None:
    results.anchors = results.anchors or prepared.anchors
    if results.env is None:
        results.env = prepared.env
    elif results.env.env_key != prepared.env.env_key:
        ours, theirs = results.env.identity, prepared.env.identity
        changed = [f"{name} {ours.get(name)} -> {theirs[name]}" for name in theirs if ours.get(name) != theirs[name]]
        raise ResultsError(f"this machine differs from the one that the file was begun on: {', '.join(changed)}")
    then, now = (env.volatile.get("gpu_uuid") for env in (results.env, prepared.env))
    if then is not None and now is not None and then != now:
        raise ResultsError(
            "this is not the GPU that the file was begun on, only one of the same model; expected a new file"
        )


class _Engine:
    """One engine from start to end."""

    def __init__(self, plan: ServePlan, run: EngineRun, prepared: Prepared, around: Surroundings) -> None:
        self._plan, self._run, self._prepared, self._around = plan, run, prepared, around

    def events(self, ahead: Ahead, following: EngineRun | None) -> Generator[Event, None, None]:
        """Yields its loads as they come, then its record, however it ends.

        `following`: the process whose turn is next.
        """
        began = time.monotonic()
        process = EngineProcess(self._run.index, self._run.mode, self._run.repeat, "ok", utc_now())
        turn = _turn(self._run, ahead, self._around.look)
        if isinstance(turn, str):
            process.status, process.reason = "error", turn
        else:
            with closing(turn):
                yield from self._asked(process, turn, ahead, following)
        process.duration_s = time.monotonic() - began
        yield ProcessDone(process)

    def _asked(
        self, process: EngineProcess, waiting: Waiting, ahead: Ahead, following: EngineRun | None
    ) -> Iterator[Event]:
        with closing(Watcher(self._around.look)) as watcher:
            guard = Guard(watcher, waiting.child.group)
            timed = Mode(self._run.mode).engine
            listener = Listener(process, guard, ServedLoad, ahead.quiet if timed else lambda: None)
            if following is not None:
                ahead.start(following)
            for load in listener.listen(waiting.child, partial(self._begin, waiting), self._plan.serving):
                yield LoadDone(self._run, load)
            _add_memory(process, guard)

    def _begin(self, waiting: Waiting) -> None:
        """Wait for its imports, and tell it what to do. Raises EngineLost."""
        imported_us = waiting.imported_us(self._plan.serving.start_timeout_s)
        waiting.child.begin(self._job(waiting.scratch, imported_us))

    def _job(self, scratch: str, imported_us: float) -> ServeJob:
        plan, run = self._plan, self._run
        return ServeJob(
            mode=run.mode,
            setup=plan.setup,
            serving=plan.serving,
            loads=plan.asked(run.mode),
            prepared=self._prepared,
            trace=traced_loads(plan) if self._around.where and run.repeat == 0 and Mode(run.mode).engine else (),
            opener=self._around.opener_of(run.mode),
            imported_us=imported_us,
            scratch=scratch,
        )


def traced_loads(plan: ServePlan) -> tuple[Load, ...]:
    """One decode and one prefill of the plan to trace: the most usual ones, with 32 requests in flight if there are."""
    decodes = [load for load in plan.loads if load.kind == "decode" and not load.base_fraction]
    prefills = [load for load in plan.loads if load.kind == "prefill"]
    return (*usual_first(decodes)[:1], *prefills[:1])


def usual_first(loads: Iterable[Load]) -> list[Load]:
    """The loads, the one with about USUAL_REQUESTS in flight first: one request alone would use one adapter."""
    return sorted(loads, key=lambda load: abs(load.requests - USUAL_REQUESTS))


def _turn(run: EngineRun, ahead: Ahead, look: Callable[[], Seen]) -> Waiting | str:
    """The process of a run once the GPU is nobody's; why it is not."""
    if not ahead.off:
        waiting = ahead.take(run)
        try:
            reason = until_free(look)
        except BaseException:
            waiting.close()
            raise
        if reason is None:
            return waiting
        waiting.close()
        ahead.off = True  # in case its imports are what is on the GPU: none is started before its turn any more
    return until_free(look) or ahead.take(run)


def _add_memory(process: EngineProcess, guard: Guard) -> None:
    for item in process.loads:
        if item.load.kind == "start" and item.status == "ok" and guard.greatest_bytes:
            item.samples["gpu_bytes"] = [float(guard.greatest_bytes)]
