"""Result files as tables: per phase our time, each peer's, the ratio and the distance from the floor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from statistics import geometric_mean, median

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.judge.estimate import Floor, anchor_value, floor, point_estimate, process_spread
from bench.model.case import OPS, PHASES, Case, ClockName, Op
from bench.model.records import Point, Results
from bench.show.console import console as console

OURS = "csgmv_embed-vocab_major"
SHORT = {"csgmv_embed": "ours", "vocab_major": "vocab", "rank_major": "rank", "sglang_": "", "torch_": ""}
# For readers who have not seen the code.
NAMES: dict[str, str] = {
    "csgmv_embed-vocab_major": "ours, vocab-major table",
    "csgmv_embed_pdl-vocab_major": "ours, vocab-major, overlapped launch (PDL)",
    "csgmv_embed-rank_major": "ours, SGLang's rank-major table",
    "csgmv_embed_segments-vocab_major": "ours, vocab-major, csgmv's segments",
    "csgmv_embed_segments-rank_major": "ours, rank-major, csgmv's segments",
    "csgmv_embed_pdl-rank_major": "ours, rank-major, overlapped launch (PDL)",
    "csgmv_embed_plugin-chunk16": "ours in SGLang, chunk 16 (default), a new batch",
    "csgmv_embed_plugin-chunk128": "ours in SGLang, chunk 128, a new batch",
    "csgmv_embed_plugin_steady-chunk16": "ours in SGLang, chunk 16 (default), the same step again",
    "csgmv_embed_plugin_steady-chunk128": "ours in SGLang, chunk 128, the same step again",
    "sglang_csgmv-chunk16": "SGLang csgmv, chunk 16 (default)",
    "sglang_csgmv-chunk128": "SGLang csgmv, chunk 128",
    "sglang_triton": "SGLang triton fallback",
    "sglang_tokens": "SGLang token kernel",
    "torch_gather": "torch gather",
    "csgmv_embed_add-vocab_major": "ours, added to a base lookup, vocab-major",
    "csgmv_embed_add-rank_major": "ours, added to a base lookup, rank-major",
    "csgmv_embed_captured-vocab_major": "ours, prefill captured too, vocab-major",
    "csgmv_embed_captured-rank_major": "ours, prefill captured too, rank-major",
    "sglang_triton_v2": "SGLang triton_v2",
    "base": "without LoRA",
}
MARKS = {"skipped": "skip", "wrong": "WRONG", "crashed": "CRASH", "error": "ERROR"}


def short_name(contender: str) -> str:
    """`csgmv_embed-vocab_major` -> `ours-vocab`, `sglang_csgmv-chunk16` -> `csgmv-chunk16`."""
    for long, short in SHORT.items():
        contender = contender.replace(long, short)
    return contender


def name_of(contender: str) -> str:
    """A contender's name in a sentence or a legend."""
    return NAMES.get(contender, short_name(contender))


def microseconds(value: float | None) -> str:
    """A time to three significant digits, us."""
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def summary(results: Results) -> RenderableType:
    """Every table of a file, its heading and the points that have no figure."""
    parts: list[RenderableType] = [heading(results)]
    for clock in ("graph", "eager", "prepare"):
        for kind in kinds(results.points):
            points = [point for point in results.points if point.clock == clock and kind_of(point.case) == kind]
            if points:
                parts += [timed_table(results, points, clock, kind), Text()]
    counted = [point for point in results.points if point.clock == "work"]
    if counted:
        parts += [work_table(counted), Text()]
    parts += [ratios(results), errors(results.points), failures(results.points)]
    return Group(*parts)


def kind_of(case: Case) -> str:
    """What a table holds the cases of: a phase, and the op where it is not the lookup."""
    return case.phase if case.op == "lookup" else f"{case.op}, {case.phase}"


def kinds(points: Iterable[Point]) -> list[str]:
    """The kinds of these points, lookups first, decode before prefill."""
    cases = sorted({point.case for point in points}, key=lambda case: (OPS.index(case.op), PHASES.index(case.phase)))
    return list(dict.fromkeys(kind_of(case) for case in cases))


def heading(results: Results) -> RenderableType:
    """What ran, where, how many points of which status."""
    run, code, identity = results.run, results.code, results.env.identity if results.env else {}
    gpu = identity.get("gpu") or "no GPU"
    dirty = " + uncommitted changes" if code.dirty else ""
    statuses = ", ".join(f"{count} {status}" for status, count in Counter(p.status for p in results.points).items())
    versions = ", ".join(f"{name} {identity[name]}" for name in ("torch", "triton", "sglang") if identity.get(name))
    lines = [
        f"profile {run.selection.profile} on {gpu}, {versions}",
        f"commit {code.short or 'unknown'}{dirty}, {run.started_utc}, {run.duration_s:.0f} s, {statuses}",
    ]
    bandwidth = anchor_value(results, "copy_bandwidth")
    if bandwidth:
        graph, eager = anchor_value(results, "empty_kernel_graph"), anchor_value(results, "empty_kernel_eager")
        lines.append(
            f"floors: empty kernel {microseconds(graph)} us in a graph, {microseconds(eager)} us eager; "
            f"copy {bandwidth / 1e6:.2f} TB/s"
        )
    return Text("\n".join(lines) + "\n")


def timed_table(results: Results, points: Sequence[Point], clock: str, kind: str) -> Table:
    """One row a case: our time and its multiple of the floor, then each other contender with its ratio to ours."""
    by_case = _by_case(points)
    names = _columns(points)
    table = Table(
        title=f"{kind}, {clock} clock: us a {'batch' if clock == 'prepare' else 'call'}",
        title_justify="left",
        pad_edge=False,
    )
    table.add_column("case", no_wrap=True)
    table.add_column("cache")
    table.add_column("floor", justify="right")
    for name in names:
        table.add_column(short_name(name), justify="right")
        table.add_column("/floor" if name == OURS else "ratio", justify="right", style="bold" if name != OURS else "")
    bandwidth = anchor_value(results, "copy_bandwidth")
    for case, row in by_case.items():
        table.add_row(case_label(case, by_case), case.cache, *_timed_cells(row, names, bandwidth))
    return table


def _timed_cells(row: dict[str, Point], names: Sequence[str], bandwidth: float | None) -> list[str]:
    ours = row.get(OURS)
    our_estimate = point_estimate(ours) if ours else None
    lower: Floor | None = next((found for point in row.values() if (found := floor(point, bandwidth))), None)
    cells = [f"{microseconds(lower.value_us)} {lower.kind[0]}" if lower else "-"]
    for name in names:
        point = row.get(name)
        taken = point_estimate(point) if point and point.status == "ok" else None
        base = lower.value_us if name == OURS and lower else our_estimate.value if our_estimate else None
        cells.append(microseconds(taken.value) if taken else MARKS.get(point.status, "-") if point else "-")
        cells.append(f"{taken.value / base:.2f}" if taken and base else "")
    return cells


def work_table(points: Sequence[Point]) -> Table:
    """Counts and compiled figures, a row a point."""
    table = Table(title="work clock: counts of one launch, not times", title_justify="left", pad_edge=False)
    columns = ("programs", "busiest ld/st", "loaded kB", "sectors ld", "sectors st", "regs", "spill B", "load bits")
    for name in ("case", "contender"):
        table.add_column(name, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right")
    for point in sorted(points, key=lambda item: (item.case, item.contender)):
        if point.work is None:
            continue
        counts, compiled = point.work.counts, point.work.compiled
        table.add_row(
            point.case.label,
            short_name(point.contender),
            f"{counts.active_programs}/{counts.programs}",
            f"{counts.busiest_loads}/{counts.busiest_stores}",
            f"{counts.load_bytes / 1000:.1f}",
            str(counts.load_sectors),
            str(counts.store_sectors),
            *(_joined(getattr(item, field) for item in compiled) for field in _COMPILED_FIELDS),
        )
    return table


_COMPILED_FIELDS = ("registers", "spill_bytes", "widest_load_bits")


def _joined(values: Iterable[int]) -> str:
    return "+".join(map(str, values)) or "-"


def ratios(results: Results) -> RenderableType:
    """Geometric mean and range of each contender's time over ours, per clock, over the points both have."""
    lines: list[str] = []
    clocks: tuple[ClockName, ...] = ("graph", "eager", "prepare")
    for clock in clocks:
        points = [point for point in results.points if point.clock == clock and point.status == "ok"]
        for op in OPS:
            lines += _ratios(clock, op, [point for point in points if point.case.op == op])
        spreads = [spread for point in points if (spread := process_spread(point)) is not None]
        if spreads:
            middle, worst = f"{100 * median(spreads):.2f} %", f"{100 * max(spreads):.2f} %"
            lines.append(f"{clock}: between processes the log time varies by {middle} (median sd), {worst} at worst")
    return Text("\n".join(lines) + "\n" if lines else "")


def _ratios(clock: ClockName, op: Op, points: Sequence[Point]) -> Iterator[str]:
    by_case = _by_case(points)
    what = clock if op == "lookup" else f"{op}, {clock}"
    for name in _columns(points):
        values = [_value(row[name]) / _value(row[OURS]) for row in by_case.values() if name in row and OURS in row]
        if name != OURS and values:
            yield (
                f"{what}: {short_name(name)} takes {geometric_mean(values):.2f} times ours "
                f"({min(values):.2f} to {max(values):.2f}, {len(values)} cases)"
            )


def errors(points: Sequence[Point]) -> RenderableType:
    """Of each op that rounds: each contender's largest error, and at how many points that both have ours is larger.

    Errors are against the float64 oracle, relative to its largest value.
    """
    lines: list[str] = []
    for op in OPS:
        checked = [(point, error) for point in points if point.case.op == op and (error := _error(point)) is not None]
        ours = {(point.case, point.clock): error for point, error in checked if point.contender == OURS}
        for name in dict.fromkeys(point.contender for point, _ in checked):
            errs = {(point.case, point.clock): error for point, error in checked if point.contender == name}
            both = errs.keys() & ours.keys()
            larger = sum(ours[key] > errs[key] for key in both)
            beside = f"; ours errs by more at {larger} of {len(both)} points" if both and name != OURS else ""
            lines.append(f"{op}: {short_name(name)} errs by {max(errs.values()):.2g} of the largest value{beside}")
    return Text("\n".join(lines) + "\n" if lines else "")


def _error(point: Point) -> float | None:
    """None for what was not compared, or is a copy that has to be equal."""
    return point.check.max_error if point.check and point.check.tolerance > 0 else None


def failures(points: Sequence[Point]) -> RenderableType:
    """Each point that is not ok, with its reason; those alike in all but the case on one line."""
    groups: dict[tuple[str, str, str, str | None], list[str]] = {}
    for point in points:
        if point.status != "ok":
            groups.setdefault((point.status, point.contender, point.clock, point.reason), []).append(point.case.label)
    lines = []
    for (status, contender, clock, reason), labels in groups.items():
        shown = ", ".join(labels[:3]) + (", ..." if len(labels) > 3 else "")
        lines.append(f"{status}: {contender}, {clock} clock, {len(labels)} cases ({shown}): {reason}")
    return Text("\n".join(lines))


def _value(point: Point) -> float:
    found = point_estimate(point)
    assert found is not None
    return found.value


def _by_case(points: Sequence[Point]) -> dict[Case, dict[str, Point]]:
    rows: dict[Case, dict[str, Point]] = {}
    for point in sorted(points, key=lambda item: item.case):
        rows.setdefault(point.case, {})[point.contender] = point
    return rows


def _columns(points: Sequence[Point]) -> list[str]:
    """Contenders that have at least one figure or failure, ours first, in the order of the run."""
    shown = [p for p in sorted(points, key=lambda item: item.index) if p.status != "skipped"]
    names = list(dict.fromkeys(point.contender for point in shown))
    return sorted(names, key=lambda name: name != OURS)


def case_label(case: Case, cases: Iterable[Case]) -> str:
    """The label, with every axis that differs among these cases of its op and is not in it."""
    cases = [other for other in cases if other.op == case.op]
    hidden = ("adapters", "mix", "base_fraction", "rank_mix", "vocab", "dtype")
    varied = [name for name in hidden if len({getattr(other, name) for other in cases}) > 1]
    return " ".join([case.label, *(f"{name}={getattr(case, name)}" for name in varied)])
