"""Profile records as tables, and what a user can do next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from bench.model.case import Case
from bench.show.fit import Column, Fitted
from bench.show.labels import case_label
from bench.show.tables import microseconds, short_name
from profiles import nsys
from profiles.ncu import READER
from profiles.records import NcuBody, NsysBody, ProfileRecord, RangeTime, TraceBody
from profiles.summaries import (
    COMPARED_US,
    SECTOR_BYTES,
    Agreement,
    Counters,
    DeviceTime,
    agreements,
    counters,
    device_times,
)
from profiles.target import load_recipe, parse_point, recipe_names

SHOWN_STALLS = 2
MOST_KERNELS = 15  # rows of a table


def shown(profile: ProfileRecord, folder: Path) -> RenderableType:
    """The tables of a record whose files lie in `folder`."""
    parts: list[RenderableType] = [_heading(profile), _body(profile.body)]
    parts += [Text(f"left out, this version lacks it: {flag}") for flag in profile.dropped_flags]
    parts += [Text(_file_line(folder / name)) for name in profile.files]
    return Group(*parts)


def recipes() -> RenderableType:
    """Name and purpose of each recipe."""
    return Text("\n".join(f"{name:18} {load_recipe(name).about}" for name in recipe_names()))


def _heading(profile: ProfileRecord) -> Text:
    if not profile.commands:
        return Text(f"{profile.tool_version}, without its record; a profile, not a timing\n")
    gpu = profile.env.identity.get("gpu") if profile.env else None
    where = f" on {gpu}" if gpu else ""
    return Text(
        f"{profile.tool_version}{where}, commit {profile.code.short or 'unknown'}, {profile.started_utc}, "
        f"{profile.launches} launches x {profile.replays}; a profile, not a timing\n"
    )


def _body(body: NsysBody | NcuBody | TraceBody) -> RenderableType:
    if isinstance(body, NsysBody):
        return _ranges(body)
    if isinstance(body, NcuBody) and not body.kernels:
        return Text(f"the reports are kept unread: `{READER}`, then `python -m bench profile show` on the record")
    if isinstance(body, NcuBody):
        return Group(_counters(counters(body)), _agreements(agreements(body)), _missing(body.missing))
    return _traced(device_times(body), body)


def _file_line(path: Path) -> str:
    if not path.exists():
        return f"{path}: not here any more"
    if path.suffix in (nsys.RAW, nsys.REPORT):
        return nsys.how_to_open(path)
    if path.suffix == ".ncu-rep":
        return f"{path}: open with ncu-ui {path.name}"
    if path.suffix == ".json":
        return f"{path}: open with ui.perfetto.dev or chrome://tracing"
    return str(path)


def _table(title: str, names: Sequence[str], rows: Sequence[Sequence[str]], texts: int, core: int) -> Fitted:
    """A table whose first `texts` columns are text, the others numbers.

    The texts and the first `core` numbers stay at any width; of the others the first come first.
    """
    cells = list(zip(*rows, strict=True)) or [()] * len(names)
    kept = texts + core
    return Fitted(
        title,
        [
            Column(name, cells[place], rank=max(0, place + 1 - kept), right=place >= texts)
            for place, name in enumerate(names)
        ],
    )


def _ranges(body: NsysBody) -> RenderableType:
    if body.ranges is None:
        return Text(body.remark or "")
    names = ("range", "phase", "kernels us", "gaps us", "entered", "eager", "in graphs", "captured in")
    rows = [_range_cells(item) for item in body.ranges]
    table = _table("GPU work by the innermost NVTX range around its launch", names, rows, 2, 0)
    remarks = [Text(f"{body.unattributed} kernels were launched outside our ranges")] if body.unattributed else []
    whole = sum(item.whole_graphs for item in body.ranges)
    if whole:
        remarks.append(Text(f"{whole} graphs are one row each: --cuda-graph-trace=node shows their kernels"))
    remarks += [Text(f"left out of the capture: {count} {what}") for what, count in sorted(body.lacking.items())]
    return Group(table, *_kernels(body), *remarks)


def _kernels(body: NsysBody) -> list[RenderableType]:
    """The kernels that took longest."""
    if not body.kernels:
        return []
    whole = sum(item.total_us for item in body.kernels)
    rows = [
        [
            item.kernel,
            str(item.calls),
            microseconds(item.total_us),
            f"{100 * item.total_us / whole:.1f}" if whole else "-",
        ]
        for item in body.kernels[:MOST_KERNELS]
    ]
    title = f"kernels by name, {min(len(body.kernels), MOST_KERNELS)} of {len(body.kernels)}"
    return [_table(title, ("kernel", "calls", "us", "% of all"), rows, 1, 3)]


def _range_cells(item: RangeTime) -> list[str]:
    origins = ", ".join(f"{_phase(origin)} {count}" for origin, count in item.origins.items())
    numbers = [item.instances, item.eager, item.graph]
    return [
        _point_label(item.path[0]),
        " / ".join(item.path[1:]),
        microseconds(item.busy_us),
        microseconds(item.gap_us),
        *map(str, numbers),
        origins or "-",
    ]


def _phase(path: str) -> str:
    return path.rsplit(" / ", 1)[-1]


def _point_label(name: str) -> str:
    """A range's name for people; a point's as contender, clock and case."""
    if name.count("|") < 2:
        return name
    point = parse_point(name)
    return f"{short_name(point.contender)} {point.clock} {point.case.label}"


# The first of each stay at any width, because a launch is profiled for them.
TRAFFIC = (
    "sect/req",
    "overfetch",
    "L2 kB",
    "L1 hit %",
    "L2 hit %",
    "DRAM rd kB",
    "DRAM wr kB",
    "L2 sectors rd",
    "wr",
    "programs",
)
EXECUTION = ("DRAM %", "L2 %", "occupancy %", "issuing %", "registers", "warps waiting, an issue", "kernels")


def _counters(rows: Sequence[Counters]) -> RenderableType:
    """What moved, and how it was executed. Rows of the same clock and state of the caches share a table."""
    cases = {row.case for row in rows}
    runs = list(dict.fromkeys((row.clock, row.cache) for row in rows))
    of_runs = [
        (f"{clock} clock, {cache} cache", [r for r in rows if (r.clock, r.cache) == (clock, cache)])
        for clock, cache in runs
    ]

    def table(
        title: str, names: Sequence[str], cells: Callable[[Counters], list[str]], of: Sequence[Counters], core: int
    ) -> Fitted:
        named = [(case_label(row.case, cases), short_name(row.contender), *cells(row)) for row in of]
        return _table(title, ("case", "contender", *names), named, 2, core)

    moved = "traffic of one launch, sums over its kernels; sect/req: sectors a request, L2 kB: read from the L2"
    executed = "execution, of the kernel that reads most"
    tables = [table(f"ncu, {run}: {moved}", TRAFFIC, _traffic_cells, of, 3) for run, of in of_runs]
    tables += [table(f"ncu, {run}: {executed}", EXECUTION, _execution_cells, of, 2) for run, of in of_runs]
    return Group(*(part for one in tables for part in (one, Text())))


def _traffic_cells(row: Counters) -> list[str]:
    def kilo(count: int | None, unit: int = 1) -> str:
        return _number(None if count is None else count * unit / 1000)

    return [
        _number(row.sectors_per_request),
        _number(row.overfetch),
        kilo(row.load_sectors, SECTOR_BYTES),
        _number(row.l1_hit_pct),
        _number(row.l2_hit_pct),
        kilo(row.dram_read_bytes),
        kilo(row.dram_write_bytes),
        _count(row.load_sectors),
        _count(row.store_sectors),
        _count(row.programs),
    ]


def _execution_cells(row: Counters) -> list[str]:
    waits = ", ".join(f"{name} {value:.1f}" for name, value in row.stalls[:SHOWN_STALLS])
    return [
        *(_number(share) for share in (row.dram_pct, row.l2_pct, row.occupancy_pct, row.issue_pct)),
        _count(row.registers),
        waits or "-",
        f"{row.kernels}",
    ]


def _agreements(rows: Sequence[Agreement]) -> RenderableType:
    if not rows:
        return Text("not compared with the work clock: no counts")
    cases = {row.case for row in rows}
    found = [
        (
            case_label(row.case, cases),
            short_name(row.contender),
            row.what,
            _ratio(row.ratio),
            _count(row.ncu),
            _count(row.counted),
        )
        for row in rows
    ]
    names = ("case", "contender", "what", "ncu / counted", "ncu", "counted")
    return _table("the cold run beside the work clock's counts", names, found, 3, 1)


def _missing(names: Sequence[str]) -> RenderableType:
    return Text("".join(f"this GPU or version of ncu has no {name}\n" for name in names))


def _traced(rows: Sequence[DeviceTime], body: TraceBody) -> RenderableType:
    names = (
        "case",
        "contender",
        "clock",
        "clock us",
        "device us",
        "/(clock-floor)",
        "traced/untraced",
        "kernels",
        "floor us",
        "/(clock-gaps)",
    )
    cases = {row.point.case for row in rows}
    found = [_traced_cells(row, cases) for row in rows]
    table = _table("torch profiler: device time of a call beside the suite's clock", names, found, 3, 2)
    lines = [f"device time over the clock's less the floor: calls in a graph of more than {COMPARED_US:g} us"]
    lines += [f"left out of the trace: {count} {what}" for what, count in sorted(body.lacking.items())]
    if body.floor_device_us is not None and "graph" in body.floor_us:
        gap_us = body.floor_us["graph"] - body.floor_device_us
        lines.append(
            f"an empty kernel in a graph: {microseconds(body.floor_device_us)} us on the device and a gap of "
            f"{microseconds(gap_us)} us behind it; the last ratio leaves a gap a kernel out of the clock's time"
        )
    if any(row.disturbed for row in rows):
        lines.append("!: the trace slowed these calls by more than 10 %: read their kernels, not their gaps")
    return Group(table, Text("\n".join(lines)))


def _traced_cells(row: DeviceTime, cases: set[Case]) -> list[str]:
    point = row.point
    return [
        case_label(point.case, cases),
        short_name(point.contender),
        point.clock,
        microseconds(point.untraced_us),
        microseconds(row.device_us),
        _ratio(row.ratio),
        f"{row.slowed:.2f}{' !' if row.disturbed else ''}",
        f"{sum(kernel.per_call for kernel in point.kernels):g}",
        microseconds(row.floor_us),
        _ratio(row.gap_ratio),
    ]


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"
