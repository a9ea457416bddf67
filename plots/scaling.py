"""Time against tokens, rank and adapters, with the floor and the line of bytes over bandwidth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.case import Case
from bench.estimate import anchor_value
from bench.report.tables import short_name
from bench.results import Point, Results
from plots.series import Series, drawn, series
from plots.style import REFERENCE, look, save, styled

CONTENDERS = (
    "csgmv_embed-vocab_major",
    "csgmv_embed_pdl-vocab_major",
    "csgmv_embed-rank_major",
    "sglang_csgmv-chunk16",
    "sglang_csgmv-chunk128",
    "sglang_triton",
    "torch_gather",
)
OURS = CONTENDERS[0]
RANK, BATCH = 64, 256


@dataclass(frozen=True)
class Panel:
    """One axis: its label, the cases along it and where a case lies."""

    title: str
    label: str
    wanted: Callable[[Case], bool]
    axis: Callable[[Case], float]


def _plain(case: Case) -> bool:
    usual = (case.cache, case.vocab, case.dtype, case.rank_mix, case.mix, case.skew, case.base_fraction)
    return usual == ("warm", 128256, "bfloat16", "equal", "uniform", 0.0, 0.0)


PANELS = (
    Panel(
        f"rank {RANK}, 8 adapters; decode to 512, then prefill",
        "tokens",
        lambda case: (
            _plain(case)
            and (case.rank, case.adapters) == (RANK, 8)
            and case.phase == ("decode" if case.num_tokens <= 512 else "prefill")
        ),
        lambda case: case.num_tokens,
    ),
    Panel(
        f"decode of {BATCH} requests, 8 adapters",
        "rank",
        lambda case: _plain(case) and case.phase == "decode" and case.batch_size == BATCH and case.adapters == 8,
        lambda case: case.rank,
    ),
    Panel(
        f"decode of {BATCH} requests, rank {RANK}",
        "adapters in the batch",
        lambda case: _plain(case) and case.phase == "decode" and case.batch_size == BATCH and case.rank == RANK,
        lambda case: case.adapters,
    ),
)


@dataclass(frozen=True)
class PanelData:
    """What a panel draws. bytes_line: (x, minimum bytes over the copy bandwidth, us); floor_us: an empty graph node."""

    panel: Panel
    series: list[Series]
    bytes_line: list[tuple[float, float]]
    floor_us: float | None


def data(results: Results) -> list[PanelData]:
    """The numbers of the figure."""
    bandwidth, floor_us = anchor_value(results, "copy_bandwidth"), anchor_value(results, "empty_kernel_graph")
    found = []
    for panel in PANELS:
        ours = [p for p in results.points if p.contender == OURS and p.clock == "graph" and panel.wanted(p.case)]
        line = sorted({(panel.axis(p.case), _bytes_us(p, bandwidth)) for p in ours if bandwidth and p.minimum_bytes})
        found.append(PanelData(panel, series(results, panel.wanted, panel.axis, CONTENDERS), line, floor_us))
    return found


def _bytes_us(point: Point, bandwidth: float | None) -> float:
    assert point.minimum_bytes is not None and bandwidth is not None
    return point.minimum_bytes / bandwidth


def draw(results: Results, path: Path) -> list[Path]:
    """Write the figure; returns the files."""
    with styled():
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(PANELS), sharey=True), data(results), strict=True):
            _draw_panel(axes, panel)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=5)
        figure.axes[0].set_ylabel("us a call, CUDA graph")
        return save(figure, path)


def _draw_panel(axes: Axes, found: PanelData) -> None:
    for item in found.series:
        axes.plot(*drawn(item.marks), label=short_name(item.contender), **look(item.contender))
        missing = [mark.x for mark in item.marks if mark.value_us is None and mark.status != "skipped"]
        if missing:  # wrong or crashed: shown at the top, never left out
            style = {**look(item.contender), "marker": "x"}
            axes.plot(missing, [0.97] * len(missing), transform=axes.get_xaxis_transform(), linestyle="", **style)
    if found.floor_us:
        axes.axhline(found.floor_us, label="empty kernel", **REFERENCE)
    if found.bytes_line:
        dotted = {**REFERENCE, "linestyle": ":"}
        axes.plot([x for x, _ in found.bytes_line], [y for _, y in found.bytes_line], label="bytes / copy", **dotted)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(found.panel.label)
    axes.set_title(found.panel.title, fontsize=9)
    lowest = min([value for item in found.series for value in drawn(item.marks)[1]], default=1.0)
    axes.set_ylim(bottom=0.5 * min(lowest, found.floor_us or lowest))
