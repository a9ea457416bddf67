"""The cross-check of a run: a server a mode, what bench_serving says of it into the file. Yields events."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing

import msgspec

from bench.engine import preparation
from bench.engine.cross_check import CLIENT, SERVER
from bench.engine.messages import Begun, Crossed, CrossJob, Done, Prepared, Started
from bench.engine.processes import EngineChild, EngineLost
from bench.engine.watch import Seen, Watcher, disturbance, greatest_processes, until_free
from bench.model.environment import utc_now
from bench.model.served import CrossLoad, CrossProcess, LoadStatus
from bench.model.serving import Mode, ServePlan, engines, not_crossed

MARGIN_S = 60.0  # of the client's own: its warm-up, and reading what it wrote


class CrossStarted(msgspec.Struct, frozen=True):
    """A server is being started."""

    mode: str


class CrossLoadDone(msgspec.Struct, frozen=True):
    """bench_serving has asked a load."""

    mode: str
    load: CrossLoad


class CrossDone(msgspec.Struct, frozen=True):
    """A server is in the file."""

    process: CrossProcess


CrossEvent = CrossStarted | CrossLoadDone | CrossDone


class Crossing(msgspec.Struct, frozen=True):
    """What a cross-check needs. `server`, `client`, `child` and `look` are other ones in tests."""

    plan: ServePlan
    prepared: Prepared
    cache: str
    child: Callable[[Mapping[str, str]], EngineChild]
    look: Callable[[], Seen]
    server: str = SERVER
    client: str = CLIENT

    def events(self, mode: str) -> Generator[CrossEvent, None, None]:
        """The loads as they come, then the record: however the server ends, there is one."""
        began = time.monotonic()
        process = CrossProcess(mode, "ok", utc_now())
        yield CrossStarted(mode)
        if reason := until_free(self.look):
            process.status, process.reason = "error", reason
        else:
            with tempfile.TemporaryDirectory(prefix="bench-cross-") as scratch:
                yield from self._asked(process, scratch)
        process.duration_s = time.monotonic() - began
        yield CrossDone(process)

    def _asked(self, process: CrossProcess, scratch: str) -> Iterator[CrossEvent]:
        mode = Mode(process.mode)
        folders = {preparation.FOLDER: scratch} if mode.lora else {}
        with closing(Watcher(self.look)) as watcher, self.child(mode.environment | folders) as child:
            listener = _Listener(process, watcher)
            try:
                child.begin(self._job(process.mode, scratch))
                for load in listener.listen(child, self.plan):
                    yield CrossLoadDone(process.mode, load)
            except EngineLost as lost:
                process.status, process.reason = "crashed" if lost.crashed else "error", str(lost)

    def _job(self, mode: str, scratch: str) -> CrossJob:
        plan = self.plan
        asked = tuple(load for load in plan.loads if not_crossed(load) is None)
        return CrossJob(
            mode,
            plan.setup,
            plan.serving,
            plan.loads,
            self.prepared,
            asked,
            self.cache,
            scratch,
            self.server,
            self.client,
        )


class _Listener:
    """Hears the process that holds server and client, and writes down what it says."""

    def __init__(self, process: CrossProcess, watcher: Watcher) -> None:
        self._process, self._watcher = process, watcher
        self._began_ns = time.monotonic_ns()
        self._own: int | None = None

    def listen(self, child: EngineChild, plan: ServePlan) -> Iterator[CrossLoad]:
        """Each load as it is done. Raises EngineLost."""
        timeout_s = plan.serving.start_timeout_s + MARGIN_S
        while True:
            message = child.hear(timeout_s)
            timeout_s = plan.serving.load_timeout_s + MARGIN_S
            if isinstance(message, Started):  # nobody else was there before: until now all are the server's own
                self._process.server = message.engine
                self._own = greatest_processes(self._watcher.during(self._began_ns, time.monotonic_ns()))
            elif isinstance(message, Crossed):
                found = self._load(message)
                self._process.loads.append(found)
                yield found
            elif isinstance(message, Done):
                self._done(message)
                return
            else:
                assert isinstance(message, Begun)

    def _load(self, message: Crossed) -> CrossLoad:
        seen = self._watcher.during(message.began_ns, message.ended_ns)
        clocks = [item.sm_mhz for item in seen if item.sm_mhz is not None]
        failed = message.problem is not None and not message.problem.startswith("a request failed")
        problem = message.problem or disturbance(seen, processes=self._own)
        status: LoadStatus = "ok" if problem is None else "error" if failed else "void"
        return CrossLoad(
            message.load,
            status,
            problem,
            said=message.said,
            sm_mhz=[min(clocks), max(clocks)] if clocks else [],
            throttle=sorted({reason for item in seen for reason in item.throttle}),
            duration_s=(message.ended_ns - message.began_ns) / 1e9,
        )

    def _done(self, message: Done) -> None:
        """A server that is not what its mode says has said nothing."""
        if message.problem is None:
            return
        self._process.status, self._process.reason = "error", message.problem
        for item in self._process.loads:
            if item.status == "ok":
                item.status, item.reason = "void", message.problem


def of_plan(plan: ServePlan, modes_done: set[str]) -> list[str]:
    """Modes whose server is not in the file yet; none if bench_serving can ask nothing of the plan."""
    if all(not_crossed(load) is not None for load in plan.loads):
        return []
    return [mode for mode in engines(plan.modes) if mode not in modes_done]
