"""The process of an engine, seen from outside: started in its own group, listened to, and ended with all it spawned."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from time import monotonic_ns
from types import TracebackType
from typing import IO

import msgspec

from bench.engine.messages import Job, Message

MODULE = "bench.engine.child"
LAST_WORDS = 1200  # characters of its output that a reason quotes
END_S = 60.0  # for an engine to leave the GPU after its last word
LONGEST = 2**28
COMMON = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # SGLang's own settings are as a server has them


class EngineLost(Exception):
    """The process does not answer any more. The message says how it ended. `crashed`: it ended by itself."""

    def __init__(self, reason: str, *, crashed: bool) -> None:
        super().__init__(reason)
        self.crashed = crashed


class EngineChild:
    """One process, used as a context manager. At the end nothing that it spawned is left."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        to_child, from_child = os.pipe(), os.pipe()
        self.spawned_ns = monotonic_ns()
        self._process = subprocess.Popen(
            [sys.executable, "-m", MODULE, str(to_child[0]), str(from_child[1])],
            pass_fds=(to_child[0], from_child[1]),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env={**os.environ, **COMMON, **environment},
            start_new_session=True,
        )
        os.close(to_child[0])
        os.close(from_child[1])
        self._sender, self._receiver = (
            Connection(to_child[1], readable=False),
            Connection(from_child[0], writable=False),
        )

    def begin(self, job: Job) -> None:
        """Send it a job. Raises EngineLost."""
        try:
            self._sender.send_bytes(msgspec.json.encode(job))
        except OSError:
            raise EngineLost(self._how_it_ended(), crashed=True) from None

    def hear(self, timeout_s: float) -> Message:
        """Its next message. Raises EngineLost if none comes in time, or if the process has ended."""
        try:
            if self._receiver.poll(timeout_s):
                found: Message = msgspec.json.decode(self._receiver.recv_bytes(LONGEST), type=Message)
                return found
        except (EOFError, OSError):
            raise EngineLost(self._how_it_ended(), crashed=True) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise EngineLost(f"its answer is not a message ({error}): killed{self._words()}", crashed=False) from None
        raise EngineLost(f"no answer within {timeout_s:g} s: killed{self._words()}", crashed=False)

    @property
    def group(self) -> int:
        """The process group of the process and of all that it spawns."""
        return self._process.pid

    @property
    def speaks(self) -> bool:
        """Whether `hear` would return at once."""
        return self._receiver.poll(0)

    def leave(self) -> None:
        """Wait for its end, which it has announced."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)

    def close(self) -> None:
        """End its whole group, whatever the processes are doing."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._sender.close()
        self._receiver.close()
        self._log.close()

    def __enter__(self) -> EngineChild:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            return f"closed its pipe and lived on: killed{self._words()}"
        return f"the engine's process ended with {ending(code)}{self._words()}"

    def _words(self) -> str:
        """The end of what it wrote."""
        return last_words(self._log, LAST_WORDS)


def ending(code: int) -> str:
    """How a process ended, in words."""
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def last_words(log: IO[bytes], most: int) -> str:
    """The end of what a process wrote to its log, as the end of a sentence."""
    log.seek(0)
    words = " ".join(log.read().decode(errors="replace").split())
    return f": ...{words[-most:]}" if words else ""
