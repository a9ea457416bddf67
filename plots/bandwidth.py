"""Draws the bandwidth achieved, by the bytes that a launch must move, beside that of a copy and of an empty kernel.

It is not a roofline: a lookup has almost no arithmetic, and neither line is a bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.judge.estimate import anchor_value, point_estimate
from bench.model.records import Results
from bench.show.tables import name_of
from plots.series import described, shown_op
from plots.style import REFERENCE, caption, heading, legend, look, plain, provenance, save, styled, versions

CONTENDERS = ("csgmv_embed-vocab_major", "csgmv_embed-rank_major", "sglang_csgmv-chunk16", "sglang_triton")
FILLED = {"warm": True, "mixed": True, "cold": False}


@dataclass(frozen=True)
class Achieved:
    """One point: the least bytes of any implementation, and the bandwidth. cache: the achieved state of the cache."""

    contender: str
    bytes: int
    bytes_per_us: float
    cache: str


@dataclass(frozen=True)
class Bandwidth:
    """The points, and two lines: the copy bandwidth (bytes/us) and the time of an empty graph node (us)."""

    points: list[Achieved]
    copy_bytes_per_us: float | None
    floor_us: float | None


def data(results: Results) -> Bandwidth:
    """The numbers of the figure: graph-clock points with a time. The least bytes are equal for all contenders."""
    points = []
    op = shown_op(results)
    for point in results.points:
        wanted = point.case.op == op and point.status == "ok" and point.clock == "graph"
        taken = point_estimate(point) if wanted else None
        if taken and point.minimum_bytes and point.cache and point.contender in CONTENDERS:
            rate = point.minimum_bytes / taken.value
            points.append(Achieved(point.contender, point.minimum_bytes, rate, point.cache.achieved))
    return Bandwidth(points, anchor_value(results, "copy_bandwidth"), anchor_value(results, "empty_kernel_graph"))


def draw(results: Results, path: Path) -> list[Path]:
    """Write the figure. Returns the files."""
    found = data(results)
    with styled():
        figure = Figure(figsize=(8.6, 5.2), layout="constrained")
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
                    kilobytes, rates = [p.bytes / 1e3 for p in chosen], [p.bytes_per_us / 1e3 for p in chosen]
                    axes.plot(kilobytes, rates, label=label, **style)
        _draw_references(axes, found)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("least bytes of a launch (its input, read once, and its output), kB")
        axes.set_ylabel("least bytes / time, GB/s")
        for axis in (axes.xaxis, axes.yaxis):
            plain(axis)
        legend(figure)
        heading(figure, f"Bytes a second, in a CUDA graph: {described(results)}", provenance(results))
        caption(
            figure,
            "Each marker is one case. Higher is better. Neither line is a bound: rows that the L2 still holds from the "
            "launch before\nare read faster than a copy reads, and overlapped launches hide a part of an empty "
            "kernel's time.\n"
            f"{versions(results)}",
        )
        return save(figure, path)


def _draw_references(axes: Axes, found: Bandwidth) -> None:
    ends = [min(p.bytes for p in found.points), max(p.bytes for p in found.points)] if found.points else [1, 1]
    if found.copy_bytes_per_us:
        rate = found.copy_bytes_per_us / 1e3
        axes.plot([end / 1e3 for end in ends], [rate, rate], label="a copy of 1 GiB", **REFERENCE)
    if found.floor_us:
        dotted = {**REFERENCE, "linestyle": ":"}
        axes.plot(
            [end / 1e3 for end in ends],
            [end / found.floor_us / 1e3 for end in ends],
            label="the least bytes in the\ntime of an empty kernel",
            **dotted,
        )
