"""Achieved bytes per second against the bytes a launch must move, under the ceilings measured in the same run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.judge.estimate import anchor_value, point_estimate
from bench.model.records import Results
from bench.show.tables import name_of
from plots.series import shown_op
from plots.style import REFERENCE, caption, look, provenance, save, styled

CONTENDERS = ("csgmv_embed-vocab_major", "csgmv_embed-rank_major", "sglang_csgmv-chunk16", "sglang_triton")
FILLED = {"warm": True, "mixed": True, "cold": False}


@dataclass(frozen=True)
class Achieved:
    """One point: least bytes of any implementation, and what it made of them. cache: the state that was achieved."""

    contender: str
    bytes: int
    bytes_per_us: float
    cache: str


@dataclass(frozen=True)
class Roof:
    """The points, the copy bandwidth (bytes/us) and the time of an empty graph node (us)."""

    points: list[Achieved]
    copy_bytes_per_us: float | None
    floor_us: float | None


def data(results: Results) -> Roof:
    """The numbers of the figure: graph-clock points that have a time; the least bytes are equal for all contenders."""
    points = []
    op = shown_op(results)
    for point in results.points:
        wanted = point.case.op == op and point.status == "ok" and point.clock == "graph"
        taken = point_estimate(point) if wanted else None
        if taken and point.minimum_bytes and point.cache and point.contender in CONTENDERS:
            rate = point.minimum_bytes / taken.value
            points.append(Achieved(point.contender, point.minimum_bytes, rate, point.cache.achieved))
    return Roof(points, anchor_value(results, "copy_bandwidth"), anchor_value(results, "empty_kernel_graph"))


def draw(results: Results, path: Path) -> list[Path]:
    """Write the figure; returns the files."""
    found = data(results)
    with styled():
        figure = Figure(figsize=(7.6, 5.6), layout="constrained")
        axes = figure.subplots()
        for name in CONTENDERS:
            for filled in (True, False):
                chosen = [p for p in found.points if p.contender == name and FILLED[p.cache] == filled]
                if chosen:
                    style = {
                        **look(name),
                        "linestyle": "",
                        "markerfacecolor": look(name)["color"] if filled else "none",
                    }
                    label = name_of(name) + ("" if filled else ", cold cache")
                    axes.plot([p.bytes for p in chosen], [p.bytes_per_us / 1e6 for p in chosen], label=label, **style)
        _draw_ceilings(axes, found)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(f"least bytes of the {shown_op(results)} (what it reads once, output)")
        axes.set_ylabel("achieved, TB/s")
        if axes.get_lines():
            figure.legend(loc="outside upper left", ncols=2, fontsize=8)
        above = "above the copy line: rows came from the L2, which holds them between launches"
        caption(figure, f"a point is a case; higher is better; {above}\n{provenance(results)}")
        return save(figure, path)


def _draw_ceilings(axes: Axes, found: Roof) -> None:
    ends = [min(p.bytes for p in found.points), max(p.bytes for p in found.points)] if found.points else [1, 1]
    if found.copy_bytes_per_us:
        axes.plot(ends, [found.copy_bytes_per_us / 1e6] * 2, label="ceiling: bandwidth of a 1 GiB copy", **REFERENCE)
    if found.floor_us:
        dotted = {**REFERENCE, "linestyle": ":"}
        axes.plot(
            ends,
            [end / found.floor_us / 1e6 for end in ends],
            label="ceiling: least bytes in the time of an empty kernel",
            **dotted,
        )
