"""Draws what a server gains: time of a decode step and of a prefill in every mode, with a mark for each process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.judge.serving import ServedFigure, figures
from bench.model.served import ServeResults
from bench.model.serving import Load, engines
from bench.show.looks import mode_color
from bench.show.serving import setup_words
from plots.labels import load_name
from plots.style import caption, heading, provenance, save, styled, versions

SHOWN = {"step": "ms a decode step", "prefill": "ms a prefill", "next token": "ms to the next token, median"}
MODE_WORDS = {"none": "no LoRA", "csgmv": "csgmv (default)", "plugin": "csgmv with the plugin"}
READING = (
    "Lower is better. A bar is the geometric mean of a mode's processes, and each dot is one process. "
    "The first number of a load counts its requests,\nthe second the tokens of a prompt. In a stream, each client "
    "sends its next prompt when it has its answer. Arrivals come at random times, at the given rate."
)
LABEL = 1.2  # inches of a load's name
BAR = 0.8  # of the room of a load that its bars take


@dataclass(frozen=True)
class Panel:
    """One figure: its axis, loads and modes in order, and the values of each."""

    label: str
    loads: list[Load]
    modes: list[str]
    by: dict[tuple[Load, str], ServedFigure]


def data(results: ServeResults) -> list[Panel]:
    """A panel for each figure that the file has."""
    found = figures(results)
    panels = []
    for name, label in SHOWN.items():
        chosen = [figure for figure in found if figure.name == name]
        if chosen:
            loads = list(dict.fromkeys(figure.case.load for figure in chosen))
            by = {(figure.case.load, figure.mode): figure for figure in chosen}
            panels.append(Panel(label, loads, engines(results.run.modes), by))
    return panels


def draw(results: ServeResults, path: Path) -> list[Path]:
    """Write the figure. Returns the files."""
    panels = data(results)
    widths = [max(1.5, len(panel.loads) * max(LABEL, len(panel.modes) * 0.28)) for panel in panels]
    with styled():
        figure = Figure(figsize=(3.4 + max(5.0, sum(widths)), 4.0), layout="constrained")
        grid = figure.subplots(1, len(panels), squeeze=False, gridspec_kw={"width_ratios": widths})
        for axes, panel in zip(grid.flat, panels, strict=True):
            _draw_panel(axes, panel)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        words = [MODE_WORDS.get(label, label) for label in labels]
        figure.legend(handles, words, loc="outside right center", fontsize=8)
        where = f"{setup_words(results.setup)}\n{provenance(results, ['bfloat16'])}"
        heading(figure, "A real SGLang engine, mode by mode", where)
        caption(figure, f"{READING}\n{versions(results)}")
        return save(figure, path)


def _draw_panel(axes: Axes, panel: Panel) -> None:
    width = BAR / len(panel.modes)
    for place, mode in enumerate(panel.modes):
        shift = (place - (len(panel.modes) - 1) / 2) * width
        cells = [(at + shift, panel.by[load, mode]) for at, load in enumerate(panel.loads) if (load, mode) in panel.by]
        timed = [(x, item.value / 1000, item) for x, item in cells if item.value is not None]
        axes.bar([x for x, _, _ in timed], [y for _, y, _ in timed], width * 0.92, color=mode_color(mode), label=mode)
        for x, _, item in timed:
            marks = [value / 1000 for value in item.by_repeat.values()]
            axes.plot([x] * len(marks), marks, color="black", linestyle="", marker=".", markersize=2.5)
        for x, item in cells:
            if item.value is None:
                axes.annotate(item.status, (x, 0), rotation=90, fontsize=7, ha="center", va="bottom")
    axes.set_xticks(range(len(panel.loads)), list(map(load_name, panel.loads)), fontsize=8)
    axes.set_ylabel(panel.label)
    axes.set_ylim(bottom=0)
    axes.grid(axis="x", visible=False)
