"""The cross-check of a run: writes bench_serving's figures of a server in each mode into the file. Yields events."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from functools import partial

import msgspec

from bench.engine import preparation
from bench.engine.cross_check import CLIENT, SERVER
from bench.engine.listening import Listener
from bench.engine.messages import CrossJob, Prepared
from bench.engine.processes import EngineChild
from bench.engine.watch import Guard, Seen, Watcher, until_free
from bench.model.environment import utc_now
from bench.model.served import CrossLoad, CrossProcess
from bench.model.serving import Mode, ServePlan, engines, not_crossed

MARGIN_S = 60.0  # of the client's own: its warm-up, and reading what it wrote


class CrossStarted(msgspec.Struct, frozen=True):
    """A server is being started."""

    mode: str


class CrossLoadDone(msgspec.Struct, frozen=True):
    """bench_serving has run a load."""

    mode: str
    load: CrossLoad


class CrossDone(msgspec.Struct, frozen=True):
    """The record of a server is in the file."""

    process: CrossProcess


CrossEvent = CrossStarted | CrossLoadDone | CrossDone


class Crossing(msgspec.Struct, frozen=True):
    """What a cross-check needs. Tests replace `server`, `client`, `child` and `look`."""

    plan: ServePlan
    prepared: Prepared
    cache: str
    child: Callable[[Mapping[str, str]], EngineChild]
    look: Callable[[], Seen]
    server: str = SERVER
    client: str = CLIENT

    def events(self, mode: str) -> Generator[CrossEvent, None, None]:
        """The loads as they come, then the record. There is a record however the server ends."""
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
            listener = Listener(process, Guard(watcher, child.group), CrossLoad)
            job = self._job(process.mode, scratch)
            for load in listener.listen(child, partial(child.begin, job), self.plan.serving, MARGIN_S):
                yield CrossLoadDone(process.mode, load)

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


def of_plan(plan: ServePlan, modes_done: set[str]) -> list[str]:
    """Modes whose server is not in the file yet. Empty if bench_serving supports no load of the plan."""
    if all(not_crossed(load) is not None for load in plan.loads):
        return []
    return [mode for mode in engines(plan.modes) if mode not in modes_done]
