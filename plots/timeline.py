"""Draws one replay as a profiler sees it: the host's call and the kernels it enqueued, a row for each contender."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.model.config import parse_axis_overrides
from bench.show.tables import name_of
from plots.labels import case_name
from plots.style import caption, heading, look, save, styled
from profiles import kineto
from profiles.capture import ProfileError
from profiles.kineto import Kernel
from profiles.records import ProfileRecord
from profiles.target import parse_point

WINDOW_CALLS = 4  # of the slowest contender shown: the axis ends behind so many of its calls
FILLS = ("FillFunctor", "Memset", "memset")  # of torch, before a peer's kernel
LANE, PALE = 0.7, 0.35


@dataclass(frozen=True)
class Row:
    """One replay of a contender. `kernels` are (name, start, duration) in us after the call that launched them."""

    contender: str
    kernels: list[tuple[str, float, float]]


@dataclass(frozen=True)
class Timeline:
    """The rows of one case, in the trace's order."""

    label: str
    dtype: str
    rows: list[Row]


def data(trace: Path, selection: str | None = None) -> Timeline:
    """The last replay of each graph point of a case: the first case that fits `NAME=VALUE,...`.

    Raises CaptureFailed for a file that is not a trace, ProfileError if no point fits.
    """
    replays = _last_replays(kineto.kernels(kineto.load(trace)))
    wanted = parse_axis_overrides(selection.split(","), "--case") if selection else None
    points = [parse_point(name) for name in replays if "|graph|" in name]
    fitting = [
        point
        for point in points
        if wanted is None
        or all(
            getattr(point.case, name, None) in values
            for name in type(wanted).__struct_fields__
            if (values := getattr(wanted, name)) is not None
        )
    ]
    if not fitting:
        raise ProfileError(
            f"{trace}: has no graph point of a case {selection or ''}; expected a trace that `profile trace` wrote"
        )
    case = fitting[0].case
    rows = [Row(point.contender, replays[point.name]) for point in fitting if point.case == case]
    return Timeline(case_name(case), case.dtype, rows)


def _last_replays(found: Sequence[Kernel]) -> dict[str, list[tuple[str, float, float]]]:
    """Range -> the kernels of its last call, relative to the first of them."""
    last: dict[str, float] = {}
    for kernel in found:
        if kernel.range is not None and kernel.called_us is not None:
            last[kernel.range] = max(kernel.called_us, last.get(kernel.range, kernel.called_us))
    replays: dict[str, list[tuple[str, float, float]]] = {}
    for name, called_us in last.items():
        own = sorted((k for k in found if k.range == name and k.called_us == called_us), key=lambda k: k.start_us)
        replays[name] = [(k.name, k.start_us - own[0].start_us, k.device_us) for k in own]
    return replays


def draw(timeline: Timeline, path: Path, record: ProfileRecord | None = None) -> list[Path]:
    """Write the figure.

    Returns the files. record: of the trace's session, because a trace names neither GPU nor commit.
    """
    end_us = max(_calls_end(row) for row in timeline.rows)
    with styled():
        figure = Figure(figsize=(8, 1.4 + 0.5 * len(timeline.rows)), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(timeline.rows):
            _draw_row(axes, place, row, end_us)
        axes.set_yticks(range(len(timeline.rows)), [name_of(row.contender) for row in timeline.rows])
        axes.invert_yaxis()
        axes.set_xlim(0, end_us)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("us after the first kernel of a replay")
        heading(figure, f"Kernels on the GPU in a replay of a CUDA graph: {timeline.label}", _where(timeline, record))
        caption(
            figure,
            f"Each bar is a kernel. A pale bar is torch's zero-fill. The axis ends after {WINDOW_CALLS} calls of the "
            "slowest row.\ntorch's profiler makes the gaps between kernels longer than they are without it.",
        )
        return save(figure, path)


def _where(timeline: Timeline, record: ProfileRecord | None) -> str:
    if record is None:
        return timeline.dtype
    gpu = (record.env.identity.get("gpu") if record.env else None) or "no GPU"
    return f"{gpu}; {timeline.dtype}; commit {record.code.short or 'unknown'}; {record.started_utc[:10]}"


def _calls_end(row: Row) -> float:
    """The end of the window's calls; a call ends with a kernel that is no fill."""
    ends = [start + us for name, start, us in row.kernels if not _is_fill(name)]
    return ends[min(WINDOW_CALLS, len(ends)) - 1] if ends else 0.0


def _draw_row(axes: Axes, place: int, row: Row, end_us: float) -> None:
    shown = [kernel for kernel in row.kernels if kernel[1] < end_us]
    for fill in (True, False):
        bars = [(start, us) for name, start, us in shown if _is_fill(name) == fill]
        color = look(row.contender)["color"]
        axes.broken_barh(bars, (place - LANE / 2, LANE), facecolors=color, alpha=PALE if fill else 1.0, linewidth=0)


def _is_fill(name: str) -> bool:
    return any(word in name for word in FILLS)
