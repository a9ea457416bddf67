"""Draws where a pass of a real engine spends its time: kernel time by site of the model, a stack for each mode."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from bench.engine import trace
from bench.judge.where import Where, where
from bench.model.served import SITES, ServeResults, Site
from bench.show.serving import setup_words
from bench.show.sites import COLORS, NAMES, SHARES
from plots.labels import load_name
from plots.style import caption, heading, provenance, save, styled, versions

SHORT = {"none": "no LoRA"}  # modes whose own name says little below a bar


def data(results: ServeResults) -> list[list[Where]]:
    """The traces of each load, one for each mode."""
    found = where(trace.anew(results))
    return [[item for item in found if item.load == load] for load in dict.fromkeys(item.load for item in found)]


def draw(results: ServeResults, path: Path) -> list[Path]:
    """Write the figure. Returns the files."""
    panels = data(results)
    with styled():
        figure = Figure(figsize=(2.0 + 3.2 * len(panels), 4.4), layout="constrained")
        grid = figure.subplots(1, len(panels), squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=True):
            stacks: list[Mapping[Site, float]] = [item.by_site for item in panel]
            names = [SHORT.get(item.mode, item.mode) for item in panel]
            if least := {site: us for item in panel for site, us in item.floors.items()}:
                stacks.append(least)
                names.append("floor")
            bottoms = [0.0] * len(stacks)
            for site in SITES:
                heights = [stack.get(site, 0.0) / 1000 for stack in stacks]
                if any(heights):
                    axes.bar(range(len(stacks)), heights, 0.7, bottom=bottoms, color=COLORS[site], label=NAMES[site])
                    bottoms = [below + height for below, height in zip(bottoms, heights, strict=True)]
            axes.set_xticks(range(len(stacks)), names, rotation=20, ha="right")
            axes.set_title(load_name(panel[0].load).replace("\n", " "), loc="left")
            axes.set_ylabel(f"ms of kernels a {panel[0].per}")
            axes.grid(axis="x", visible=False)
        shown = {
            label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(list(shown.values()), list(shown), loc="outside right center", fontsize=8)
        where = f"{setup_words(results.setup)}\n{provenance(results, ['bfloat16'])}"
        heading(figure, "Where a pass of a real SGLang engine spends its time", where)
        caption(figure, f"{SHARES}\n{versions(results)}")
        return save(figure, path)
