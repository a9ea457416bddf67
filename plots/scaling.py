"""Draws time against tokens, rank, adapters and skew, or tokens at each site, with floor and bytes over bandwidth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from msgspec.structs import replace

from bench.judge.estimate import anchor_value
from bench.model.case import SITES, Case, Site
from bench.model.records import Point, Results
from bench.show.tables import name_of
from plots.series import Series, described, drawn, series, shown_op
from plots.style import (
    REFERENCE,
    caption,
    heading,
    legend,
    look,
    marked,
    plain,
    provenance,
    save,
    spread_out,
    styled,
    versions,
)

CONTENDERS = (
    "csgmv_embed-vocab_major",
    "csgmv_embed_pdl-vocab_major",
    "csgmv_embed-rank_major",
    "sglang_csgmv-chunk16",
    "sglang_csgmv-chunk128",
    "sglang_triton",
    "sglang_triton_v2",
    "vllm",
    "torch_gather",
    "base",
)
OURS = CONTENDERS[0]
RANK, BATCH, HIDDEN = 64, 256, 4096
TICKS_US = tuple(step * 10**power for power in range(-1, 4) for step in (1, 2, 5))
NOTES = (
    "Lower is better. Both axes are logarithmic. Neither reference line is a bound: an overlapped launch (PDL) hides",
    "a part of its start, which the empty kernel pays in full, and rows in the L2 are read faster than a copy reads.",
)
BUMP = 1.5  # a time this much above those of both neighbours along the axis is told
SKEWED_TOKENS = (4000, 5000)  # cases of about as many tokens, however they are spread over sequences


@dataclass(frozen=True)
class Panel:
    """One axis: its label, the cases along it, and each case's place."""

    title: str
    label: str
    wanted: Callable[[Case], bool]
    axis: Callable[[Case], float]


def _plain(case: Case) -> bool:
    return _usual(case) and case.skew == 0.0


def _usual(case: Case) -> bool:
    usual = (case.cache, case.vocab, case.dtype, case.rank_mix, case.mix, case.base_fraction)
    return usual == ("warm", 128256, "bfloat16", "equal", "uniform", 0.0)


def longest_sequence(case: Case) -> int:
    """Tokens of the longest request, to within one. bench.workload.tensors is exact, but imports torch."""
    if case.num_prefills == 0:
        return 1
    shares = [(index + 1) ** -case.skew for index in range(case.num_prefills)]
    return 1 + int(case.num_prefills * (case.seq_len - 1) * shares[0] / sum(shares))


PANELS = (
    Panel(
        f"rank {RANK}, 8 adapters",
        "tokens: decode to 512, prefill beyond",
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
    Panel(
        f"prefill of about 4096 tokens, rank {RANK}",
        "tokens of the longest sequence (skew)",
        lambda case: (
            _usual(case)
            and (case.rank, case.adapters, case.phase) == (RANK, 8, "prefill")
            and SKEWED_TOKENS[0] <= case.num_tokens <= SKEWED_TOKENS[1]
        ),
        longest_sequence,
    ),
)


def panels(results: Results) -> tuple[Panel, ...]:
    """The panels of the op that is shown. An op with sites has a panel for each, in the setting of most cases."""
    op = shown_op(results)
    cases = list(dict.fromkeys(p.case for p in results.points if p.case.op == op and p.case.site != "none"))
    if not cases:
        return PANELS
    usual = Counter(_setting(case) for case in cases).most_common(1)[0][0]
    return tuple(_at_site(site, usual) for site in SITES if any(case.site == site for case in cases))


def _at_site(site: Site, usual: Case) -> Panel:
    setting = f"rank {usual.rank}" + ("" if usual.rank_mix == "equal" else f" in {usual.rank_mix}")
    return Panel(
        f"{site} of {usual.model}, {setting}, {usual.adapters} adapters, {usual.cache}",
        "tokens",
        lambda case: case.site == site and case.skew == 0.0 and _setting(case) == usual,
        lambda case: case.num_tokens,
    )


def _setting(case: Case) -> Case:
    """All of a case but its site and its batch."""
    batch: dict[str, Any] = {"phase": "decode", "batch_size": 1, "seq_len": 1, "skew": 0.0}
    return replace(case, site="none", **batch)


@dataclass(frozen=True)
class PanelData:
    """What a panel draws. bytes_line: (x, minimum bytes over the copy bandwidth, us); floor_us: an empty graph node."""

    panel: Panel
    series: list[Series]
    bytes_line: list[tuple[float, float]]
    floor_us: float | None

    @property
    def extent(self) -> int:
        """Number of different places along its axis."""
        return len({mark.x for item in self.series for mark in item.marks})

    @property
    def values_us(self) -> list[float]:
        """The times that have to fit into the panel."""
        floor = [self.floor_us] if self.floor_us else []
        return floor + [value for item in self.series for value in drawn(item.marks)[1]]


def data(results: Results) -> list[PanelData]:
    """The numbers of the figure."""
    bandwidth, floor_us = anchor_value(results, "copy_bandwidth"), anchor_value(results, "empty_kernel_graph")
    found = []
    op = shown_op(results)
    for panel in panels(results):

        def wanted(case: Case, panel: Panel = panel) -> bool:
            return case.op == op and case.hidden in (0, HIDDEN) and panel.wanted(case)

        ours = [p for p in results.points if p.contender == OURS and p.clock == "graph" and wanted(p.case)]
        line = sorted({(panel.axis(p.case), _bytes_us(p, bandwidth)) for p in ours if bandwidth and p.minimum_bytes})
        found.append(PanelData(panel, series(results, wanted, panel.axis, CONTENDERS), line, floor_us))
    return found


def _bytes_us(point: Point, bandwidth: float | None) -> float:
    assert point.minimum_bytes is not None and bandwidth is not None
    return point.minimum_bytes / bandwidth


def draw(results: Results, path: Path) -> list[Path]:
    """Write the figure. Returns the files. Panels along which the results do not vary are left out."""
    everything = data(results)
    panels = [panel for panel in everything if panel.extent > 1] or everything[:1]
    rows, columns = (2, 2) if len(panels) == 4 else (-(-len(panels) // 3), min(3, len(panels)))
    with styled():
        figure = Figure(figsize=(4.3 * max(columns, 1.2) + 2.6, 3.8 * max(rows, 1.2)), layout="constrained")
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_axis_off()
        for axes, panel in zip(grid.flat, panels, strict=False):
            _draw_panel(axes, panel)
        values = [value for panel in panels for value in panel.values_us]
        if values:  # the axis is shared
            grid[0, 0].set_ylim(0.6 * min(values), 1.5 * max(values))
        legend(figure)
        for axes in grid[:, 0]:
            axes.set_ylabel("us a call")
        dtypes = {"bfloat16"} if panels[0].panel in PANELS else None
        heading(figure, f"Time of a call in a CUDA graph: {described(results)}", provenance(results, dtypes))
        caption(figure, "\n".join([*NOTES, *_bumps(panels), versions(results)]))
        return save(figure, path)


def _bumps(found: list[PanelData]) -> list[str]:
    """Times far above those of both neighbours, in words: a reader is to know that they were seen."""
    told = []
    for panel in found:
        for item in panel.series:
            for before, here, after in zip(item.marks, item.marks[1:], item.marks[2:], strict=False):
                values = before.value_us, here.value_us, after.value_us
                if all(values) and here.value_us > BUMP * max(before.value_us, after.value_us):  # type: ignore[operator,type-var]
                    spelled = ", ".join(f"{value:.3g}" for value in values)
                    axis = panel.panel.label.split(":")[0]
                    told.append(f"{name_of(item.contender)} at {here.x:g} {axis}: {spelled} us")
    if not told:
        return []
    return [f"These bumps were measured. Medians of all rounds before, at and after each: {'; '.join(told)}."]


def _draw_panel(axes: Axes, found: PanelData) -> None:
    for item in found.series:
        axes.plot(*drawn(item.marks), label=name_of(item.contender), **look(item.contender))
        missing = [(mark.x, mark.status) for mark in item.marks if mark.value_us is None and mark.status != "skipped"]
        marked(axes, missing, look(item.contender))
    if found.floor_us:
        axes.axhline(found.floor_us, label="an empty kernel", **REFERENCE)
    if found.bytes_line:
        dotted = {**REFERENCE, "linestyle": ":"}
        line = found.bytes_line
        axes.plot([x for x, _ in line], [y for _, y in line], label="least bytes of ours\nat copy bandwidth", **dotted)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(found.panel.label)
    axes.set_title(found.panel.title, loc="left")
    plain(axes.xaxis, spread_out(mark.x for item in found.series for mark in item.marks))
    plain(axes.yaxis, TICKS_US)
