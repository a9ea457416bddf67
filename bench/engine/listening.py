"""Listens to the process of an engine or of a cross-check, and records what it reports of each load.

A load that failed or was disturbed is recorded with its reason. Samples of a disturbed load are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from bench.engine.messages import Begun, Crossed, Done, Loaded, Message, Started, Traced
from bench.engine.processes import EngineChild, EngineLost
from bench.engine.watch import Guard
from bench.model.fields import LARGEST, SMALLEST
from bench.model.served import CrossLoad, CrossProcess, EngineProcess, ServedLoad
from bench.model.serving import Serving

Asked = TypeVar("Asked", ServedLoad, CrossLoad)
# What a load's record takes from the message that tells of it.
GIVEN: dict[type[Loaded | Crossed], tuple[str, ...]] = {Loaded: ("samples", "answers", "compiled"), Crossed: ("said",)}


class Listener(Generic[Asked]):
    """Listens to one process. `kind`: the type of record for its loads. `quiet` is called before its first load."""

    def __init__(
        self,
        process: EngineProcess | CrossProcess,
        guard: Guard,
        kind: type[Asked],
        quiet: Callable[[], None] = lambda: None,
    ) -> None:
        self._process, self._guard, self._quiet = process, guard, quiet
        self._kind: type[Asked] = kind
        self._loads: list[Asked] = process.loads  # type: ignore[assignment]  # the kind is the process's
        self._begun: Begun | None = None

    def listen(
        self, child: EngineChild, begin: Callable[[], None], serving: Serving, margin_s: float = 0.0
    ) -> Iterator[Asked]:
        """Yields each load as it is done. A load that was not reported gets the process's reason.

        begin     tells the process what to do
        margin_s  the client's own time
        """
        timeout_s = serving.start_timeout_s
        try:
            begin()
            while True:
                message = child.hear(timeout_s + margin_s)
                timeout_s = serving.load_timeout_s
                if isinstance(message, Done):  # it has nothing left to say or to write: it is ended, not waited for
                    self._done(message)
                    return
                yield from self._heard(message)
        except EngineLost as lost:
            yield from self._lost(lost)

    def _lost(self, lost: EngineLost) -> Iterator[Asked]:
        """How it ended; the load that it was asked then. Those after it were not asked, which the reason tells."""
        self._process.status, self._process.reason = "crashed" if lost.crashed else "error", str(lost)
        if self._begun is not None and all(item.load != self._begun.load for item in self._loads):
            found = self._kind(self._begun.load, "crashed", str(lost)[:300])
            self._loads.append(found)
            yield found

    def _heard(self, message: Message) -> Iterator[Asked]:
        begun, self._begun = self._begun, message if isinstance(message, Begun) else None
        if isinstance(message, Started):
            self._guard.started()
            if isinstance(self._process, EngineProcess):
                self._process.engine = message.engine
            else:
                self._process.server = message.engine
            self._quiet()
        elif isinstance(message, Loaded | Crossed):
            found = self._load(message)
            self._loads.append(found)
            yield found
        elif isinstance(message, Traced):
            self._traced(message, begun)

    def _load(self, message: Loaded | Crossed) -> Asked:
        conditions = self._guard.during(message.began_ns, message.ended_ns)
        given: dict[str, Any] = {name: getattr(message, name) for name in GIVEN[type(message)]}
        given |= {"sm_mhz": conditions.sm_mhz, "throttle": conditions.throttle}
        given |= {"duration_s": (message.ended_ns - message.began_ns) / 1e9}
        found: Asked = self._kind(message.load, "ok", **given)
        if message.problem is not None:
            failed = message.problem.startswith("a request failed")
            found.status, found.reason = "void" if failed else "error", message.problem
        elif isinstance(found, ServedLoad) and (reason := _no_figure(found)):
            found.status, found.reason, found.samples, found.compiled = "error", reason, {}, []
        elif conditions.disturbance:
            found.status, found.reason = "void", conditions.disturbance
        return found

    def _traced(self, message: Traced, begun: Begun | None) -> None:
        assert isinstance(self._process, EngineProcess), "a server is not traced"
        problem, ended_ns = message.problem, time.monotonic_ns()
        if begun is not None:
            self._process.traced_s += (ended_ns - begun.at_ns) / 1e9
            reason = self._guard.during(begun.at_ns, ended_ns).disturbance
            problem = problem or (reason and f"disturbed while it was traced: {reason}")
        if message.trace is not None:
            self._process.traces.append(message.trace)
        if problem is not None:
            self._process.trace_notes.append(f"{message.load.label}: {problem}")

    def _done(self, message: Done) -> None:
        """What makes a whole process worth nothing makes each of its loads so."""
        if message.problem is None:
            return
        self._process.status, self._process.reason = "error", message.problem
        for item in self._loads:
            if item.status == "ok":
                item.status, item.reason = "void", message.problem


def _no_figure(load: ServedLoad) -> str | None:
    """Why samples are none: all of them are times, bytes or counts, finite and above 0."""
    for name, values in load.samples.items():
        if not values:
            return f"{name} has no sample"
        for value in values:
            if not SMALLEST <= value <= LARGEST:
                return f"{name} has a sample of {value:g}; expected a finite one above 0"
    return None
