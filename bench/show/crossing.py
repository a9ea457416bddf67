"""The cross-check as a table: bench_serving's figures beside ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from bench.engine.crossing import CrossDone, CrossEvent, CrossStarted
from bench.judge.crossing import Crossed
from bench.judge.serving import loads_of
from bench.model.served import ServeResults
from bench.model.serving import not_crossed
from bench.show.amounts import MARKS, amount
from bench.show.fit import Column, Fitted


def cross_table(results: ServeResults, of: Sequence[Crossed], *, wide: bool = False) -> RenderableType:
    """One row for each load, figure and mode, and a list of what has no row."""
    theirs = [amount(item.theirs, item.unit) if item.theirs else MARKS.get(item.status, "-") for item in of]
    columns = [
        Column("load", [item.load.label for item in of]),
        Column("figure", [item.name for item in of]),
        Column("mode", [item.mode for item in of]),
        Column("ours", [amount(item.ours, item.unit) for item in of], right=True),
        Column("theirs", theirs, right=True),
        Column("difference", [_difference(item.ratio) for item in of], right=True, style="bold"),
    ]
    title = "SGLang's bench_serving over HTTP, a server a mode, beside our engines"
    return Group(Fitted(title, columns, wide=wide), *map(Text, cross_lines(results)))


def _difference(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * (ratio - 1):+.1f} %"


def cross_lines(results: ServeResults) -> Iterator[str]:
    """What has no figure there, and why."""
    for load in loads_of(results):
        reason = not_crossed(load)
        if reason is not None and load.kind != "start":
            yield f"{load.label}: not asked by bench_serving: {reason}"
    for process in results.cross_checks:
        if process.status != "ok":
            yield f"{process.status}: {process.mode}, the server: {process.reason}"
        for item in process.loads:
            if item.status != "ok" and item.reason != process.reason:
                yield f"{item.status}: {process.mode}, {item.load.label} by bench_serving: {item.reason}"


def follow_line(event: CrossEvent) -> str:
    """The progress line for an event."""
    if isinstance(event, CrossStarted):
        return f"{event.mode}: starting a server for bench_serving"
    if isinstance(event, CrossDone):
        process = event.process
        ending = "done" if process.status == "ok" else f"{process.status}: {process.reason}"
        return f"{process.mode}, the server: {ending} ({process.duration_s:.0f} s)"
    item = event.load
    said = f"{item.duration_s:.1f} s" if item.status == "ok" else f"{item.status}: {item.reason}"
    return f"  bench_serving, {item.load.label}: {said}"
