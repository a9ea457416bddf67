"""The progress of a sweep: a live bar on a terminal, a plain line from time to time elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bench.execute.sweep import Event, Planned
from bench.execute.tasks import GpuLost, WorkerStarted
from bench.judge.estimate import point_estimate
from bench.model.records import Point
from bench.show.tables import microseconds, short_name

if TYPE_CHECKING:  # the library imports torch
    from bench.execute.tuning.run import Tuned

PLAIN_EVERY_S = 10.0


def follow(events: Iterable[Event], console: Console) -> None:
    """Consume the sweep's events and show them."""
    if console.is_terminal:
        _follow_live(events, console)
    else:
        _follow_plain(events, console)


def _follow_live(events: Iterable[Event], console: Console) -> None:
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f}/s, left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting a worker", rate=0.0)
        start, first = time.monotonic(), 0
        for event in events:
            if isinstance(event, Planned):
                first = event.done
                progress.update(task, total=event.total, completed=event.done)
            elif isinstance(event, WorkerStarted):
                progress.console.print(_started(event))
                start, first = time.monotonic(), int(progress.tasks[0].completed)
            elif isinstance(event, GpuLost):
                progress.console.print(_lost(event))
                progress.advance(task, -event.points)
            else:
                done = progress.tasks[0].completed + 1 - first
                rate = done / max(1e-9, time.monotonic() - start)
                progress.update(task, advance=1, description=_describe(event.point), rate=rate)
                if event.point.status not in ("ok", "skipped"):
                    progress.console.print(_failure(event.point))


def _follow_plain(events: Iterable[Event], console: Console) -> None:
    total = done = first = 0
    start = said = time.monotonic()
    for event in events:
        if isinstance(event, Planned):
            if not total:
                console.print(f"{event.total} measurements planned, {event.done} already there")
            total, done = event.total, event.done
        elif isinstance(event, WorkerStarted):
            console.print(_started(event))
            start, said, first = time.monotonic(), time.monotonic(), done
        elif isinstance(event, GpuLost):
            console.print(_lost(event))
            done -= event.points
        else:
            done += 1
            if event.point.status not in ("ok", "skipped"):
                console.print(_failure(event.point))
            now = time.monotonic()
            if now - said >= PLAIN_EVERY_S or done == total:
                rate = (done - first) / max(1e-9, now - start)
                console.print(f"{done}/{total}, {rate:.1f}/s, {(total - done) / max(rate, 1e-9):.0f} s left")
                said = now


def _started(event: WorkerStarted) -> str:
    gpu = "" if event.gpu is None else f" on GPU {event.gpu}"
    return f"{event.kind} worker of process {event.process}{gpu} ready after {event.seconds:.0f} s (imports, anchors)"


def _lost(event: GpuLost) -> str:
    again = f"; {event.points} points of cases that it had begun are measured again" if event.points else ""
    return f"{event.gpu} takes no more points: {event.reason}{again}"


def _describe(point: Point) -> str:
    found = point_estimate(point)
    figure = f"{microseconds(found.value)} us" if found else point.status
    return f"{short_name(point.contender)} {point.clock} {point.case.label}: {figure}"


def _failure(point: Point) -> str:
    return f"{point.status}: {point.contender}, {point.clock}, {point.case.label}: {point.reason}"


def tuned(found: Iterable[Tuned], console: Console) -> list[Tuned]:
    """Consume a tuning run and print the result of each kernel."""
    kept = []
    for each in found:
        kernel = each.subject.kernel
        console.print(f"{kernel}: {each.cells} sizes, {each.tried} put to the proof, {len(each.rows)} kept")
        for row in each.rows:
            at = ", ".join(f"{axis} {size}" for axis, size in zip(each.subject.axes, row.at, strict=True))
            tile = " ".join(f"{name}={value}" for name, value in row.tile.items())
            times = f"{microseconds(row.tuned_us)} us, the rule's {microseconds(row.rule_us)}"
            console.print(f"  {at}: {tile}: {times}, at least {row.gain_pct:g} % less", soft_wrap=True)
        kept.append(each)
    return kept
