"""The progress display: every kind of event, on a terminal and elsewhere, and a count that comes to its end."""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from typing import get_args

import pytest
from rich.console import Console

from bench.execute.sweep import Event, Planned
from bench.execute.tasks import GpuLost, Measured, WorkerStarted
from bench.model.case import Case
from bench.model.records import Point, Round, Work, WorkCounts
from bench.show import progress
from bench.show.console import PlainConsole
from bench.show.progress import follow

CASE = Case("decode", 32, 1, 16)
TIMED = Point(CASE, "csgmv_embed-vocab_major", "graph", 0, "ok", rounds=[Round(0, 1, [1.25])])
COUNTED = Point(CASE, "sglang_triton", "work", 1, "ok", work=Work(WorkCounts(1, 1, 1, 1, 1, 8, 8, 1, 1)))
SKIPPED = Point(CASE, "sglang_tokens", "graph", 2, "skipped", "absent")
CRASHED = Point(CASE, "torch_gather", "graph", 3, "crashed", "worker ended: ...[/lib/a.so] [bold]")
EVENTS: list[Event] = [
    Planned(9, 1),
    WorkerStarted("gpu", 0, 3.2),
    WorkerStarted("gpu", 0, 3.2, gpu=1),
    *map(Measured, (TIMED, COUNTED, SKIPPED, CRASHED)),
    GpuLost("GPU 1", "worker ended: [bold]", 1),
    Measured(TIMED),
    Planned(9, 6),  # the crashed point is not asked again
    WorkerStarted("gpu", 1, 3.2),
    *map(Measured, (TIMED, COUNTED, SKIPPED)),
]


def shown(events: list[Event], *, terminal: bool) -> str:
    """What `follow` leaves on a console with the settings of the command line's, without colours."""
    file = StringIO()
    console = PlainConsole(file=file, markup=False, width=160, force_terminal=terminal, color_system=None)
    follow(iter(events), console)
    return file.getvalue()


def test_these_are_all_kinds_of_event() -> None:
    assert {type(event) for event in EVENTS} == set(get_args(Event))


@pytest.mark.parametrize("terminal", [False, True])
def test_every_kind_of_event_is_shown_and_the_count_comes_to_its_end(terminal: bool) -> None:
    output = shown(EVENTS, terminal=terminal)
    assert "gpu worker of process 0 ready after 3 s" in output and "gpu worker of process 1" in output
    assert "worker of process 0 on GPU 1 ready" in output
    assert "GPU 1 takes no more points: worker ended: [bold]; 1 points of cases that it had begun are mea" in output
    assert "9/9" in output
    assert "crashed: torch_gather, graph, decode 32 r16: worker ended: ...[/lib/a.so] [bold]" in output
    assert "absent" not in output


def test_elsewhere_there_is_a_line_at_the_start_now_and_then_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = shown(EVENTS, terminal=False)
    assert quick.startswith("9 measurements planned, 1 already there\n") and quick.count("planned") == 1
    assert quick.count("/s, ") == 1 and "\x1b" not in quick
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", 0.0)
    often = shown(EVENTS, terminal=False)
    assert [line.split(",")[0] for line in often.splitlines() if "/s, " in line] == [
        f"{done}/9" for done in (2, 3, 4, 5, 5, 7, 8, 9)
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_an_error_of_the_sweep_comes_through(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    def events() -> Iterator[Event]:
        yield Planned(2, 0)
        raise KeyboardInterrupt

    console = Console(file=StringIO(), force_terminal=terminal)
    with pytest.raises(KeyboardInterrupt):
        follow(events(), console)
