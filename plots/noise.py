"""The noise map of a machine: how much runs of the same code differ at each point, and what a gate can then see."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.judge.times import judge_pairs
from bench.model.pairs import PairPoint, PairRun, observations
from bench.show.tables import name_of
from plots.labels import case_name
from plots.style import caption, heading, save, styled

DEEPEST_PCT = 3.0  # the colour of this spread and above


@dataclass(frozen=True)
class Cell:
    """One point: spread and mean of its log ratios, and the smallest visible slowdown, in percent; or its status."""

    case: str
    contender: str
    spread_pct: float | None
    offset_pct: float | None
    sees_pct: float | None
    status: str


def data(run: PairRun) -> list[Cell]:
    """A cell for each point, from the screening rounds, because those were not selected."""
    sees = {(v.case, v.contender): v.detectable for v in judge_pairs(run).verdicts}
    cases = {point.case for point in run.points}
    ordered = sorted(run.points, key=lambda point: (point.case, point.contender))
    return [_cell(point, case_name(point.case, cases), sees.get((point.case, point.contender))) for point in ordered]


def _cell(point: PairPoint, label: str, sees: float | None) -> Cell:
    values = observations(point.of_stage("screen") or point.rounds)
    if point.status != "ok" or len(values) < 2:
        return Cell(label, point.contender, None, None, None, point.status if point.status != "ok" else "one round")
    beyond = 100 * (sees - 1) if sees is not None else None
    return Cell(label, point.contender, 100 * stdev(values), 100 * (exp(mean(values)) - 1), beyond, "ok")


def draw(run: PairRun, path: Path) -> list[Path]:
    """Write the figure. Returns the files."""
    cells = data(run)
    cases = list(dict.fromkeys(cell.case for cell in cells))
    contenders = list(dict.fromkeys(cell.contender for cell in cells))
    with styled():
        figure = Figure(figsize=(3.9 + 2.2 * len(contenders), 1.9 + 0.27 * len(cases)), layout="constrained")
        axes = figure.subplots()
        _draw_map(axes, cells, cases, contenders)
        gpu = run.env.identity.get("gpu") if run.env else None
        dtypes = ", ".join(sorted({point.case.dtype for point in run.points}))
        where = f"{gpu or 'unknown GPU'}; {dtypes}; commit {run.a.label}; {run.started_utc[:10]}"
        heading(figure, "Noise of a machine: the same code timed against itself, process by process", where)
        processes = len({item.process for point in run.points for item in point.of_stage("screen")})
        caption(
            figure,
            f"A and B are the same code. A cell has the standard deviation of log(B / A) over {processes} pairs of "
            "processes,\nthe mean change in brackets, and the smallest slowdown that the gate would see with 99 % "
            "probability.",
        )
        return save(figure, path)


def _draw_map(axes: Axes, cells: list[Cell], cases: list[str], contenders: list[str]) -> None:
    values = np.full((len(cases), len(contenders)), np.nan)
    for cell in cells:
        place = contenders.index(cell.contender), cases.index(cell.case)
        if cell.spread_pct is None or cell.offset_pct is None:
            axes.text(*place, cell.status, ha="center", va="center", fontsize=8)
            continue
        values[place[1], place[0]] = cell.spread_pct
        sees = f", sees {cell.sees_pct:.1f} %" if cell.sees_pct is not None else ""
        text = f"{cell.spread_pct:.2f} % ({cell.offset_pct:+.1f}){sees}"
        deep = cell.spread_pct > 0.6 * DEEPEST_PCT
        axes.text(*place, text, ha="center", va="center", fontsize=7.5, color="white" if deep else "black")
    image = axes.imshow(values, cmap="Blues", vmin=0.0, vmax=DEEPEST_PCT, aspect="auto")
    if axes.figure is not None:
        axes.figure.colorbar(image, ax=axes, label="standard deviation, %", extend="max", fraction=0.04, pad=0.02)
    axes.set_xticks(range(len(contenders)), [name_of(name).replace(", ", ",\n", 1) for name in contenders])
    axes.set_yticks(range(len(cases)), cases)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
