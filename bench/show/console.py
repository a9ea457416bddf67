"""Where tables and progress are printed. No text of a record can affect more than the line that shows it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from bench.model.text import for_log, printable

WIDTH = 200  # of what is no terminal
UNLIMITED = 10_000


class _Log:
    """A stream without commands to the CI that shows it; rich writes whole lines."""

    def __init__(self, name: str) -> None:
        self._name = name  # asked for at each use: a test, or a verb, may have put another in its place

    def write(self, text: str) -> int:
        return self._stream.write(for_log(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def _stream(self) -> TextIO:
        stream: TextIO = getattr(sys, self._name)
        return stream


class PlainConsole(Console):  # type: ignore[misc]  # rich is not followed
    """Prints no control characters except rich's own. Markup is off, because paths and reasons have brackets."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, without control characters of any text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def console(*, wide: bool = False) -> Console:
    """Standard output: rich on a terminal, plain text elsewhere. wide: lines may have any length."""
    return _console("stdout", wide=wide)


def progress_console() -> Console:
    """Standard error, because standard output belongs to the report."""
    return _console("stderr")


def _console(stream: str, *, wide: bool = False) -> Console:
    log: Any = _Log(stream)
    found = PlainConsole(file=log, markup=False)
    if found.is_terminal:
        return PlainConsole(file=log, markup=False, width=UNLIMITED) if wide else found
    return PlainConsole(file=log, markup=False, width=UNLIMITED if wide else WIDTH, no_color=True, force_terminal=False)
