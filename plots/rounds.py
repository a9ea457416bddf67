"""Every round of every point around its median: two clusters in a row are two modes that no average shows."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from pathlib import Path
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.case import ClockName
from bench.estimate import round_values
from bench.report.tables import case_label
from bench.results import Point, Results
from plots.style import REFERENCE, caption, look, name_of, provenance, save, styled

CONTENDERS = (
    "csgmv_embed-vocab_major",
    "csgmv_embed-rank_major",
    "sglang_csgmv-chunk16",
    "sglang_triton",
    "torch_gather",
)
PROCESS_MARKS = "osD^vPX*<>"
OUTLINE = 5.0  # percent: beyond it a row is drawn to its own marker at the edge, with its figure


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
            rows = [_row(point, case_label(point.case, cases)) for point in sorted(points, key=lambda p: p.case)]
            if rows:
                strips.append(Strip(name, clock, tuple(rows)))
    return strips


def _row(point: Point, label: str) -> Row:
    name = f"{label}{' cold' * (point.case.cache == 'cold')}"
    sampled = [item for item in point.rounds if item.blocks_us]
    if point.status != "ok" or not sampled:
        return Row(name, point.status, ())
    values = round_values(sampled)
    middle = median(values)
    rounds = [
        (item.process, _percent(value, middle), tuple(_percent(block, middle) for block in item.blocks_us))
        for item, value in zip(sampled, values, strict=True)
    ]
    return Row(name, "ok", tuple(rounds))


def _percent(value: float, middle: float) -> float:
    return 100 * log(value / middle)


def draw(results: Results, path: Path) -> list[Path]:
    """Write the figure; returns the files."""
    strips = data(results)
    with styled():
        longest = max((len(strip.rows) for strip in strips), default=1)
        figure = Figure(figsize=(2.2 + 2.6 * max(1, len(strips)), 1.6 + 0.17 * longest), layout="constrained")
        for number, strip in enumerate(strips):
            axes = figure.add_subplot(1, len(strips), number + 1)
            shared = number > 0 and [row.label for row in strip.rows] == [row.label for row in strips[0].rows]
            _draw_strip(axes, strip, labelled=not shared)
        processes = sorted({process for strip in strips for row in strip.rows for process, _, _ in row.rounds})
        figure.suptitle("Repeatability: every round of every point", x=0.01, ha="left", fontsize=10)
        caption(
            figure,
            f"large: median of a round, a marker for each of {len(processes)} process(es); small: its blocks; "
            f"the zero of a row is the median of its rounds\n{provenance(results)}",
        )
        return save(figure, path)


def _draw_strip(axes: Axes, strip: Strip, *, labelled: bool) -> None:
    color = look(strip.contender)["color"]
    limit = max((abs(v) for row in strip.rows for _, v, _ in row.rounds), default=1.0)
    limit = min(max(1.0, 1.3 * limit), 40.0)
    for place, row in enumerate(strip.rows):
        if not row.rounds:
            axes.annotate(row.status, (0, place), color=color, fontsize=7, ha="center", va="center")
        for process, value, blocks in row.rounds:
            axes.plot(
                _held(blocks, limit), [place] * len(blocks), "|", color="#999999", markersize=4, markeredgewidth=0.6
            )
            mark = PROCESS_MARKS[process % len(PROCESS_MARKS)]
            axes.plot(_held([value], limit), [place], mark, color=color, markersize=4, alpha=0.75)
    axes.axvline(0.0, **REFERENCE)
    axes.set_xlim(-limit * 1.06, limit * 1.06)
    axes.set_ylim(len(strip.rows) - 0.4, -0.6)
    axes.set_yticks(range(len(strip.rows)), [row.label for row in strip.rows] if labelled else [""] * len(strip.rows))
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("% from the point's median")
    axes.set_title(f"{name_of(strip.contender)}\n{strip.clock} clock")


def _held(values: list[float] | tuple[float, ...], limit: float) -> list[float]:
    """At the edge in the place of beyond it: a far block must not squeeze all others into a line."""
    return [max(-limit, min(limit, value)) for value in values]
