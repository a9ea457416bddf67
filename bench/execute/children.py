"""Forked processes that prepare in parallel and then work in turns."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
READY = b"ready"
LONGEST_REASON = 2000  # bytes
PR_SET_PDEATHSIG = 1


class Child:
    """A fork of this process. It runs `ready` at once, and passes the result to `work` when `finish` is called."""

    def __init__(self, ready: Callable[[], T], work: Callable[[T], None]) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self._pipe, theirs = multiprocessing.Pipe()
        self._ready: bool | None = None
        self._reason = ""
        self._pid = os.fork()
        if self._pid == 0:
            code = 1
            try:
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a killed worker leaves nobody on the GPU
                state = ready()
                theirs.send_bytes(READY)
                theirs.recv_bytes()
                work(state)
                code = 0
            except BaseException as error:
                reason = f"{type(error).__name__}: {error}"
                sys.stderr.write(f"{reason}\n")
                with suppress(OSError):
                    theirs.send_bytes(reason.encode()[:LONGEST_REASON])
            finally:
                sys.stderr.flush()
                os._exit(code)  # skips the parent's clean-up, and CUDA's, which the kernel does anyway
        theirs.close()  # so that a child that dies is the end of the pipe

    def is_ready(self) -> bool:
        """Wait until it is ready or has ended."""
        if self._ready is None:
            self._ready = self._heard() == READY
        return self._ready

    def _heard(self) -> bytes:
        """What it says next: that it is ready, or what ended it. Nothing if it ended without a word."""
        try:
            heard = self._pipe.recv_bytes()
        except (EOFError, OSError):
            return b""
        if heard != READY:
            self._reason = heard.decode(errors="replace")
        return heard

    def finish(self) -> str | None:
        """Let it work, and wait for its end. Returns how it ended, if it did not return normally."""
        with suppress(OSError):  # gone already: its status says how
            self._pipe.send_bytes(b"go")
        _, status = os.waitpid(self._pid, 0)
        if self._ready and not self._reason:
            self._heard()
        self._pipe.close()
        if os.WIFSIGNALED(status):
            return f"measuring process ended by {signal.Signals(os.WTERMSIG(status)).name}"
        code = os.waitstatus_to_exitcode(status)
        said = f": {self._reason}" if self._reason else ""
        return f"measuring process ended with exit status {code}{said}" if code else None

    def end(self) -> None:
        """End it, whatever it is doing."""
        os.kill(self._pid, signal.SIGKILL)  # until it is waited for, the id is its own
        os.waitpid(self._pid, 0)
        self._pipe.close()
