"""Draws how much faster ours is than each peer, by batch or tokens and rank: one map for each peer and clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.judge.estimate import point_estimate
from bench.model.case import Case, ClockName
from bench.model.records import Point, Results
from bench.show.tables import name_of
from plots.series import described, shown_op
from plots.style import caption, heading, provenance, save, styled, versions

OURS = "csgmv_embed-vocab_major"
PEERS = ("sglang_csgmv-chunk16", "sglang_csgmv-chunk128", "sglang_triton", "torch_gather")
CLOCKS: dict[ClockName, str] = {"graph": "in a CUDA graph", "eager": "eager, launch by launch"}
SHORT = {"skipped": "skip", "wrong": "wrong", "crashed": "crash", "error": "error"}
DEEPEST = 100.0  # the colour of this factor and above
WORST = 3.0  # and of the factor by which a peer is faster: fewer are, and they are to be seen as well
EQUAL = 1.05  # within this factor neither is faster


@dataclass(frozen=True)
class Cell:
    """One case: the peer's time over ours, or the status of the side that has no time."""

    row: str
    rank: int
    ratio: float | None
    status: str


@dataclass(frozen=True)
class Map:
    """One peer on one clock. Rows are in order: decode by batch, then prefill by tokens."""

    peer: str
    clock: ClockName
    rows: tuple[str, ...]
    ranks: tuple[int, ...]
    cells: tuple[Cell, ...] = field(default=())


def data(results: Results) -> list[Map]:
    """The maps for which the peer has a point. Only cases that differ just in batch, tokens and rank are used."""
    maps = []
    chosen = [point for point in results.points if point.case.op == shown_op(results)]
    for clock in CLOCKS:
        points = {(p.case, p.contender): p for p in chosen if p.clock == clock and _plain(p.case, chosen)}
        cases = sorted((case for case, name in points if name == OURS), key=_order)
        for peer in PEERS:
            cells = [_cell(case, points[case, OURS], points[case, peer]) for case in cases if (case, peer) in points]
            if any(cell.status != "skipped" for cell in cells):
                rows = tuple(dict.fromkeys(_row(case) for case in cases))
                maps.append(Map(peer, clock, rows, tuple(sorted({case.rank for case in cases})), tuple(cells)))
    return maps


def _plain(case: Case, points: list[Point]) -> bool:
    usual = (case.cache, case.dtype, case.rank_mix, case.mix, case.skew, case.base_fraction, case.adapters)
    vocab = max((p.case.vocab for p in points if p.case.vocab == 128256), default=case.vocab)
    plain = ("warm", "bfloat16", "equal", "uniform", 0.0, 0.0, 8)
    hidden = max((p.case.hidden for p in points if p.case.hidden == 4096), default=case.hidden)
    return usual == plain and (case.vocab, case.hidden) == (vocab, hidden) and case.phase != "mixed"


def _order(case: Case) -> tuple[bool, int, int]:
    return case.phase != "decode", case.num_tokens, case.rank


def _row(case: Case) -> str:
    if case.phase == "decode":
        return f"decode, {case.batch_size} request{'s' * (case.batch_size > 1)}"
    return f"prefill, {case.num_tokens} tokens"


def _cell(case: Case, ours: Point, peer: Point) -> Cell:
    failed = next((p.status for p in (ours, peer) if p.status != "ok"), None)
    mine, theirs = point_estimate(ours), point_estimate(peer)
    if failed or mine is None or theirs is None:
        return Cell(_row(case), case.rank, None, failed or "error")
    return Cell(_row(case), case.rank, theirs.value / mine.value, "ok")


def draw(results: Results, path: Path) -> list[Path]:
    """Write the figure. Returns the files."""
    maps = data(results)
    clocks = [clock for clock in CLOCKS if any(item.clock == clock for item in maps)]
    columns = max((sum(item.clock == clock for item in maps) for clock in clocks), default=1)
    with styled():
        heights = [1.1 + 0.3 * len(next(item.rows for item in maps if item.clock == clock)) for clock in clocks] or [2]
        figure = Figure(figsize=(2.0 + 2.5 * columns, sum(heights) + 1.0), layout="constrained")
        grid = figure.subplots(max(1, len(clocks)), columns, squeeze=False, height_ratios=heights)
        for axes in grid.flat:
            axes.set_visible(False)
        for row, clock in enumerate(clocks):
            of_clock = [item for item in maps if item.clock == clock]
            for column, item in enumerate(of_clock):
                _draw_map(grid[row, column], item, labelled=column == 0)
        what = f"How many times faster ours (vocab-major table) is than each peer: {described(results)}, 8 adapters"
        heading(figure, what, provenance(results, {"bfloat16"}))
        caption(
            figure,
            "Purple: ours is faster. The darker the cell, the larger the factor. Orange and bold: the peer is faster. "
            f"White: the two are within 5 %. Empty: not measured.\n{versions(results)}",
        )
        return save(figure, path)


def shade(ratio: float) -> float:
    """A colour from -1 (orange) over 0 (white) to 1 (purple).

    A faster peer has a hue of its own that deepens quickly.
    """
    if 1 / EQUAL < ratio < EQUAL:
        return 0.0
    if ratio > 1:
        return min(1.0, log(ratio) / log(DEEPEST))
    return max(-1.0, -0.25 - 0.75 * log(1 / ratio) / log(WORST))


def _text(cell: Cell) -> str:
    if cell.ratio is None:
        return SHORT[cell.status]
    if cell.ratio < 1.095:
        return f"{cell.ratio:.2f}"
    return f"{cell.ratio:.1f}" if cell.ratio < 9.95 else f"{cell.ratio:.0f}"


def _draw_map(axes: Axes, found: Map, *, labelled: bool) -> None:
    values = np.full((len(found.rows), len(found.ranks)), np.nan)
    for cell in found.cells:
        if cell.ratio is not None:
            values[found.rows.index(cell.row), found.ranks.index(cell.rank)] = shade(cell.ratio)
    axes.set_visible(True)
    axes.imshow(values, cmap="PuOr", vmin=-1.0, vmax=1.0, aspect="auto")
    for cell in found.cells:
        place = found.ranks.index(cell.rank), found.rows.index(cell.row)
        dark = cell.ratio is not None and abs(shade(cell.ratio)) > 0.55
        weight = "bold" if cell.ratio is not None and shade(cell.ratio) < 0 else "normal"
        color = "white" if dark else "black"
        axes.text(*place, _text(cell), ha="center", va="center", fontsize=8, color=color, weight=weight)
    axes.set_xticks(range(len(found.ranks)), [str(rank) for rank in found.ranks])
    axes.set_yticks(range(len(found.rows)), list(found.rows) if labelled else [""] * len(found.rows))
    axes.tick_params(length=0)
    axes.set_xlabel("rank")
    axes.set_title(f"{name_of(found.peer)}\n{CLOCKS[found.clock]}")
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    decode = sum(row.startswith("decode") for row in found.rows)
    if 0 < decode < len(found.rows):
        axes.axhline(decode - 0.5, color="white", linewidth=3)
