"""Failures of standard output: another encoding, a reader that has gone, a full disk, no output at all.

If output cannot be written, the exit status is 2. It is never a traceback, nor 1, which means a regression in the gate.
A closed pipe ends the program quietly, because its reader has seen enough. The status is still 2, because a verdict may
have been lost.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

from bench.cli.exit_codes import FAILED


class _Told:
    """A stream that ends the program when writing fails, before any other code can catch the error as its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:
            self._end(error)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._end(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _end(self, error: OSError | ValueError) -> NoReturn:
        if isinstance(error, ValueError) and not self._stream.closed:
            raise error
        if getattr(error, "errno", None) != errno.EPIPE:
            sys.stderr.write(f"bench: standard output: {getattr(error, 'strerror', None) or error}\n")
        _discard(self._stream)
        raise SystemExit(FAILED) from None


def _discard(stream: TextIO) -> None:
    """Discard the stream's buffer. Otherwise the interpreter would write it again at exit, fail, and exit with 120."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # no file of the system, or closed
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


@contextmanager
def told() -> Iterator[None]:
    """Within this context, text is printed in the encoding of the output, or the program exits with 2."""
    before = sys.stdout, sys.stderr
    if sys.stderr is None:  # closed: there is nobody to complain to
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - lives as long as the process
    if sys.stdout is None:
        sys.stderr.write("bench: standard output is closed; expected a terminal, a file or a pipe\n")
        raise SystemExit(FAILED)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    output = _Told(sys.stdout)
    sys.stdout = output
    try:
        try:
            yield
        finally:
            output.flush()
    finally:
        sys.stdout, sys.stderr = before
