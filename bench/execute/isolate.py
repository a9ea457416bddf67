"""Worker processes, the parent's side. A crash, a hang or a lost GPU context becomes a result and does not end the run.

Parent and worker exchange JSON messages over two pipes. The worker's stdout and stderr go to a file, whose end is
quoted if the worker dies without an answer.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import IO, Literal, TypeVar

import msgspec

from bench.model.config import Measure, PlannedPoint
from bench.model.records import Anchor, Environment, Point

WorkerKind = Literal["gpu", "interpret", "compile"]
T = TypeVar("T")
LAST_WORDS = 300  # characters of a dead worker's output that a reason quotes
LONGEST_ANSWER = 2**26  # bytes; a length past it is no length but garbage, and waiting for its end would never end
GRACE_S = 5.0


class Start(msgspec.Struct, tag=True):
    """First message to a worker."""

    kind: WorkerKind
    settings: Measure
    process: int
    contenders: tuple[str, ...]  # imported before the worker says hello


class Ask(msgspec.Struct, tag=True):
    """Measure a point. `counted` is the record to which a compile worker adds figures."""

    planned: PlannedPoint
    index: int
    counted: Point | None = None


class Hello(msgspec.Struct, tag=True):
    """First message from a worker."""

    env: Environment
    anchors: list[Anchor]


class Answer(msgspec.Struct, tag=True):
    """The record of one point. `lost`: the worker's GPU context is gone and the worker has ended."""

    point: Point
    lost: bool = False


class WorkerDied(Exception):
    """The worker gave no answer. The message says how it ended."""


class WorkerLost(WorkerDied):
    """The worker's machine is gone, which says nothing about the point it was measuring."""


class Worker:
    """One worker process. Use as a context manager; `ask` raises WorkerDied, after which the worker is gone."""

    module = "bench.execute.worker"

    def __init__(self, start: Start, environment: dict[str, str]) -> None:
        self._spawn(start.kind, environment)
        self._greet(start)

    def _spawn(self, kind: WorkerKind, environment: dict[str, str]) -> None:
        """Start the process: it imports, and then waits to be told what for."""
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        ours, theirs = _pipes()
        command = [sys.executable, "-m", self.module, *map(str, theirs)]
        self._process = subprocess.Popen(
            command,
            pass_fds=theirs,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=os.environ | _kind_environment(kind) | environment,
            start_new_session=True,  # an interrupt at the terminal is for the parent, which ends the worker itself
        )
        for fd in theirs:
            os.close(fd)
        self._receiver, self._sender = Connection(ours[0], writable=False), Connection(ours[1], readable=False)

    def _greet(self, start: Start) -> None:
        try:
            self.hello = self._exchange(start, Hello, start.settings.start_timeout_s)
        except BaseException:
            self._process.kill()
            self.close()
            raise

    def ask(self, ask: Ask, timeout_s: float) -> Answer:
        """The worker's answer, within the time limit."""
        return self._exchange(ask, Answer, timeout_s)

    def close(self) -> None:
        """End the process: first by closing its pipe, then by a signal."""
        self._sender.close()
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._receiver.close()
        self._log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self.close()

    def _exchange(self, message: msgspec.Struct, kind: type[T], timeout_s: float) -> T:
        try:
            self._sender.send_bytes(msgspec.json.encode(message))
            if self._receiver.poll(timeout_s):
                return msgspec.json.decode(self._receiver.recv_bytes(LONGEST_ANSWER), type=kind)
            ending = f"no answer within {timeout_s:g} s"
        except (EOFError, OSError):
            raise WorkerDied(self._how_it_ended()) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            ending = f"its answer is no {kind.__name__} ({error})"
        self._process.kill()
        self._process.wait()
        raise WorkerDied(f"{ending}: killed")

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:  # closed its pipe and lives on
            self._process.kill()
            code = self._process.wait()
        if self._log.closed:
            return "worker was closed"
        ending = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        self._log.seek(0)
        words = " ".join(self._log.read().decode(errors="replace").split())
        return f"worker ended with {ending}" + (f": ...{words[-LAST_WORDS:]}" if words else "")


class EarlyWorker(Worker):
    """A worker started before it is needed, so that its imports cost no time. `begin` makes it ready."""

    def __init__(self, kind: WorkerKind, environment: dict[str, str]) -> None:
        self._spawn(kind, environment)

    def begin(self, start: Start) -> None:
        """Tell it its start message. Raises WorkerDied."""
        self._greet(start)


def _pipes() -> tuple[tuple[int, int], tuple[int, int]]:
    """((read, write) of the parent, (read, write) of the worker)."""
    to_worker, from_worker = os.pipe(), os.pipe()
    return (from_worker[0], to_worker[1]), (to_worker[0], from_worker[1])


def _kind_environment(kind: WorkerKind) -> dict[str, str]:
    # SGLang's kernel cache forgets the rank in its key: off, or a peer would be measured with another rank's kernel.
    common = {"SGLANG_USE_CUSTOM_TRITON_KERNEL_CACHE": "0"}
    if kind == "gpu":
        return common
    return common | {"TRITON_INTERPRET": "1" if kind == "interpret" else "0", "CUDA_VISIBLE_DEVICES": ""}


def contender_names(points: Sequence[PlannedPoint]) -> tuple[str, ...]:
    """Each contender of the points once, in order."""
    return tuple(dict.fromkeys(point.contender for point in points))
