"""Draws every round of every point around its median. Two clusters in a row are two modes, which no average shows."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.judge.estimate import round_values
from bench.model.case import ClockName
from bench.model.records import Point, Results
from bench.show.tables import name_of
from plots.labels import case_name
from plots.style import REFERENCE, caption, heading, look, provenance, save, styled, versions

CONTENDERS = (
    "csgmv_embed-vocab_major",
    "csgmv_embed-rank_major",
    "sglang_csgmv-chunk16",
    "sglang_triton",
    "torch_gather",
)
PROCESS_MARKS = "osD^vPX*<>"
CLOCKS = {"graph": "in a CUDA graph", "eager": "eager, launch by launch", "prepare": "planning on the host"}
WIDEST_PCT = 40.0  # half the widest axis; what lies beyond is drawn at the edge


@dataclass(frozen=True)
class Row:
    """One point: its rounds, each (process, deviation from the median of the point's rounds in percent, its blocks)."""

    label: str
    status: str
    rounds: tuple[tuple[int, float, tuple[float, ...]], ...]


@dataclass(frozen=True)
class Strip:
    """One contender on one clock."""

    contender: str
    clock: ClockName
    rows: tuple[Row, ...]


def data(results: Results) -> list[Strip]:
    """Strips of the contenders that were timed."""
    strips = []
    cases = {point.case for point in results.points}
    for clock in ("graph", "eager", "prepare"):
        for name in CONTENDERS:
            points = [p for p in results.points if p.clock == clock and p.contender == name and p.status != "skipped"]
            rows = [_row(point, case_name(point.case, cases)) for point in sorted(points, key=lambda p: p.case)]
            if rows:
                strips.append(Strip(name, clock, tuple(rows)))
    return strips


def _row(point: Point, label: str) -> Row:
    sampled = [item for item in point.rounds if item.blocks_us]
    if point.status != "ok" or not sampled:
        return Row(label, point.status, ())
    values = round_values(sampled)
    middle = median(values)
    rounds = [
        (item.process, _percent(value, middle), tuple(_percent(block, middle) for block in item.blocks_us))
        for item, value in zip(sampled, values, strict=True)
    ]
    return Row(label, "ok", tuple(rounds))


def _percent(value: float, middle: float) -> float:
    return 100 * log(value / middle)


def draw(results: Results, path: Path) -> list[Path]:
    """Write the figure. Returns the files."""
    strips = data(results)
    clocks = list(dict.fromkeys(strip.clock for strip in strips))
    columns = max((sum(strip.clock == clock for strip in strips) for clock in clocks), default=1)
    with styled():
        heights = [1.4 + 0.17 * max(len(s.rows) for s in strips if s.clock == clock) for clock in clocks] or [2.0]
        figure = Figure(figsize=(2.6 + 2.4 * columns, sum(heights) + 0.8), layout="constrained")
        grid = figure.subplots(max(1, len(clocks)), columns, squeeze=False, height_ratios=heights)
        for axes in grid.flat:
            axes.set_visible(False)
        for row, clock in enumerate(clocks):
            of_clock = [strip for strip in strips if strip.clock == clock]
            labels = list(dict.fromkeys(item.label for strip in of_clock for item in strip.rows))
            for column, strip in enumerate(of_clock):
                _draw_strip(grid[row, column], strip, labels, labelled=column == 0)
        processes = {process for strip in strips for row in strip.rows for process, _, _ in row.rounds}
        heading(figure, "Repeatability: every round of every point around its median", provenance(results))
        shapes = f"; each of the {len(processes)} processes has its own shape" if len(processes) > 1 else ""
        caption(
            figure,
            f"A large marker is the median of a round{shapes}. A small line is one of its blocks.\n"
            "Zero is the median of the rounds of a row. Two clusters in a row would be two modes. "
            f"Scales differ between panels.\n{versions(results)}",
        )
        return save(figure, path)


def _draw_strip(axes: Axes, strip: Strip, labels: list[str], *, labelled: bool) -> None:
    """Every strip of a clock has the same rows, so that one list of cases names them all."""
    by_label = {row.label: row for row in strip.rows}
    rows = [by_label.get(label, Row(label, "not measured", ())) for label in labels]
    color = look(strip.contender)["color"]
    limit = max((abs(value) for row in rows for _, value, _ in row.rounds), default=1.0)
    limit = min(max(1.0, 1.3 * limit), WIDEST_PCT)
    axes.set_visible(True)
    blocks = [(b, place) for place, row in enumerate(rows) for _, _, of_round in row.rounds for b in of_round]
    axes.plot(
        _held([value for value, _ in blocks], limit), [place for _, place in blocks],
        "|", color="#999999", markersize=4, markeredgewidth=0.6, rasterized=True,  # thousands
    )  # fmt: skip
    values = [(process, value, place) for place, row in enumerate(rows) for process, value, _ in row.rounds]
    for process in sorted({process for process, _, _ in values}):
        mine = [(value, place) for other, value, place in values if other == process]
        mark = PROCESS_MARKS[process % len(PROCESS_MARKS)]
        axes.plot(
            _held([value for value, _ in mine], limit), [place for _, place in mine],
            mark, color=color, markersize=4, alpha=0.75,
        )  # fmt: skip
    for place, row in enumerate(rows):
        if not row.rounds:
            axes.annotate(row.status, (0, place), color=color, fontsize=7, ha="center", va="center")
    axes.axvline(0.0, **REFERENCE)
    axes.set_xlim(-limit * 1.06, limit * 1.06)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [row.label for row in rows] if labelled else [""] * len(rows))
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("% from the median")
    axes.set_title(f"{name_of(strip.contender)}\n{CLOCKS[strip.clock]}")


def _held(values: list[float], limit: float) -> list[float]:
    """At the edge in the place of beyond it: a far block must not squeeze all others into a line."""
    return [max(-limit, min(limit, value)) for value in values]
