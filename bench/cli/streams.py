"""Standard output as a program meets it: another encoding, a reader that has gone, a full disk, none at all.

What cannot be told ends with exit status 2, never with a traceback or with 1, which is a regression to the gate. A pipe
that was closed ends quietly: whoever closed it has seen enough. It is not 0 either, for a verdict may have been lost.
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
    """A stream whose failures end the program at once, past everything that would take them for its own."""

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
    """What is still in the stream's buffer goes nowhere: the interpreter would try it again at its end, and say 120."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # no file of the system, or closed
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


@contextmanager
def told() -> Iterator[None]:
    """Within, whatever is printed is printed in the encoding there is, or the program ends with exit status 2."""
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
