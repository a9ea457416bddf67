"""Starts the process of an engine before its turn: it imports while nothing is measured, and then waits.

A waiting process reads a pipe and has nothing on the GPU, so it disturbs no figure. If it is not ready when the engine
before it is about to be measured, it is ended, and started again in its own turn.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress

from bench.engine import compiling, peft_reference, preparation, startup
from bench.engine.messages import Warm, WarmJob
from bench.engine.processes import EngineChild, EngineLost
from bench.model.serving import EngineRun, Mode

OpenChild = Callable[[Mapping[str, str]], EngineChild]


class Waiting:
    """The process of one engine, which imports and then waits for its job, and the folder that it writes to."""

    def __init__(self, run: EngineRun, opener: str, open_child: OpenChild) -> None:
        self.run = run
        self._folder = tempfile.TemporaryDirectory(prefix="bench-serve-")
        self.scratch = self._folder.name
        mode = Mode(run.mode)
        written = [startup.FOLDER, compiling.FOLDER, *([preparation.FOLDER] if mode.lora else [])]
        folders = dict.fromkeys(written, self.scratch)
        own = {} if mode.engine else peft_reference.environment()
        self.child = open_child(mode.environment | folders | own)
        self._imported_us: float | None = None
        self._lost: EngineLost | None = None
        try:
            self.child.begin(WarmJob(opener, self.child.spawned_ns))
        except EngineLost as lost:  # told when its turn comes
            self._lost = lost

    @property
    def ready(self) -> bool:
        """Whether it has imported everything and is waiting."""
        if self._imported_us is None and self._lost is None and self.child.speaks:
            with suppress(EngineLost):
                self.imported_us(0.0)
        return self._imported_us is not None

    def imported_us(self, timeout_s: float) -> float:
        """Time from its start until everything was imported. Blocks until then. Raises EngineLost."""
        if self._lost is not None:
            raise self._lost
        if self._imported_us is None:
            try:
                said = self.child.hear(timeout_s)
            except EngineLost as lost:
                self._lost = lost
                raise
            assert isinstance(said, Warm)
            self._imported_us = said.imported_us
        return self._imported_us

    def close(self) -> None:
        """End it with everything that it spawned."""
        self.child.close()
        self._folder.cleanup()


class Ahead:
    """At most one process that waits for its turn. `opener`: the function that gives a mode's opener."""

    def __init__(self, opener: Callable[[str], str], open_child: OpenChild) -> None:
        self._opener, self._open_child = opener, open_child
        self._next: Waiting | None = None
        self.off = False  # whether none is started ahead any more

    def start(self, run: EngineRun) -> None:
        """Start the process whose turn is next."""
        if not self.off:
            self._next = Waiting(run, self._opener(run.mode), self._open_child)

    def quiet(self) -> None:
        """End the process unless it is only waiting, because a measurement is about to begin."""
        if self._next is not None and not self._next.ready:
            self.close()

    def take(self, run: EngineRun) -> Waiting:
        """The process of a run, started now if it was not started before. The caller closes it."""
        found, self._next = self._next, None
        if found is not None and found.run == run:
            return found
        if found is not None:
            found.close()
        return Waiting(run, self._opener(run.mode), self._open_child)

    def close(self) -> None:
        """End the waiting process."""
        if self._next is not None:
            self._next.close()
            self._next = None
