"""Results files as tables: for each phase our time, each peer's, the ratio and the distance from the floor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from statistics import geometric_mean, median

from rich.console import Group, RenderableType
from rich.text import Text

from bench.judge.estimate import Floor, anchor_value, point_estimate, process_spread
from bench.judge.figures import (
    BASE,
    CONTENDER,
    OURS,
    Figure,
    Pivot,
    Standing,
    figures,
    floor_words,
    pivoted,
    standings,
    with_lora,
)
from bench.model.case import OPS, PHASES, Case, ClockName, Op
from bench.model.outside import is_outside
from bench.model.records import Point, Results
from bench.model.registry import sglang_of, without_version
from bench.show.console import console as console
from bench.show.fit import Column, Fitted
from bench.show.labels import row_labels, usual

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
    "vllm": "vLLM",
    "vllm_specialized": "vLLM, grid of the adapters in use",
    "base": "without LoRA",
}
MARKS = {"skipped": "skip", "wrong": "WRONG", "crashed": "CRASH", "error": "ERROR"}


def short_name(contender: str) -> str:
    """`csgmv_embed-vocab_major` -> `ours-vocab`, `sglang_csgmv-chunk16` -> `csgmv-chunk16`."""
    if is_outside(contender):
        return contender
    for long, short in SHORT.items():
        contender = contender.replace(long, short)
    return contender


def name_of(contender: str) -> str:
    """A contender's name for a sentence or a legend."""
    version = sglang_of(contender)
    name = without_version(contender)
    return NAMES.get(name, short_name(name)) + (f", {version}" if version else "")


def microseconds(value: float | None) -> str:
    """A time in us, to three significant digits."""
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def summary(results: Results, shown: Sequence[Figure] | None = None, *, wide: bool = False) -> RenderableType:
    """All tables of a file, its heading, and the points that have no figure."""
    of = figures(results) if shown is None else shown
    points = [item.point for item in of]
    parts: list[RenderableType] = [heading(results)]
    rows = standings(of)
    for clock in ("graph", "eager", "prepare"):
        for kind in kinds(points):
            found = [row for row in rows if row.clock == clock and kind_of(row.case) == kind]
            if found:
                among = [point.case for point in results.points if point.clock == clock and kind_of(point.case) == kind]
                parts += [timed_table(found, clock, kind, among, wide=wide), Text()]
    counted = [point for point in points if point.clock == "work"]
    if counted:
        parts += [work_table(counted, wide=wide), Text()]
    parts += [ratios(points, of[0].subject if of else OURS), errors(points), failures(points)]
    return Group(*parts)


def ranked(results: Results, rows: Sequence[Standing], sort: str, *, wide: bool = False) -> RenderableType:
    """The selected cases of all kinds and clocks in one table, the worst first. Labels are as among the whole file."""
    among = [point.case for point in results.points]
    case, *others = _about(rows, among)
    columns = [case, Column("clock", [row.clock for row in rows], rank=1), *others]
    title = f"{_cases(len(rows))}, the worst {sort} first: us{usual(among)}"
    return Group(heading(results), Fitted(title, columns, wide=wide, note=_below_note({row.clock for row in rows})))


def kind_of(case: Case) -> str:
    """What the cases of a table share: a phase, and the op if it is not the lookup."""
    return case.phase if case.op == "lookup" else f"{case.op}, {case.phase}"


def kinds(points: Iterable[Point]) -> list[str]:
    """The kinds of these points: lookups first, decode before prefill."""
    cases = sorted({point.case for point in points}, key=lambda case: (OPS.index(case.op), PHASES.index(case.phase)))
    return list(dict.fromkeys(kind_of(case) for case in cases))


def heading(results: Results) -> RenderableType:
    """What ran, where, and how many points have which status."""
    run, code, identity = results.run, results.code, results.env.identity if results.env else {}
    gpu = f"{len(results.gpus)} x " * (len(results.gpus) > 1) + str(identity.get("gpu") or "no GPU")
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
            f"bounds: an empty node {microseconds(graph)} us, an empty call {microseconds(eager)} us, or the least "
            f"bytes at {bandwidth / 1e6:.2f} TB/s of a copy"
        )
    return Text("\n".join(lines) + "\n")


def timed_table(
    rows: Sequence[Standing], clock: str, kind: str, among: Sequence[Case], *, wide: bool = False
) -> RenderableType:
    """One row for each case: our time, the best competitor's, the ratio, the multiple of the bound; more if it fits.

    Labels say what distinguishes a case among those of the whole file, of which only some may be shown.
    """
    said = usual(among)
    what = f"{kind}, {clock} clock: us a {'batch' if clock == 'prepare' else 'call'}{said}"
    columns = [*_about(rows, among), Column("floor", [_floor(row.floor, clock) for row in rows], rank=4, right=True)]
    if any(row.cost_of_lora is not None for row in rows):
        columns.append(Column("LoRA costs", [_cost(row.cost_of_lora) for row in rows], rank=2, right=True))
    names = _columns([item.point for row in rows for item in row.by_name.values()])
    names = [name for name in names if name != rows[0].subject]
    for place, name in enumerate(names):
        columns.append(
            Column(short_name(name), [_marked(row.by_name.get(name)) for row in rows], rank=5 + place, right=True)
        )
    return Fitted(what, columns, wide=wide, note=_below_note({clock}))


def _below_note(clocks: Collection[str]) -> str:
    """The explanation of the mark of times below their bound."""
    return "* below the bound: " + ", or ".join(
        BELOW[eager] for eager in (0, 1) if eager in {c == "eager" for c in clocks}
    )


def _about(rows: Sequence[Standing], among: Sequence[Case]) -> list[Column]:
    """What a row of any table of times is about, and then who the best peer is."""
    peers = [row.best_peer for row in rows]
    return [
        Column("case", row_labels([row.case for row in rows], among)),
        Column(whose(rows), [_time(row.ours) for row in rows], right=True),
        Column("peer", [_marked(peer) for peer in peers], right=True),
        Column("ratio", [_multiple(row.ratio) for row in rows], right=True, style="bold"),
        Column("/floor", [_of_floor(row.ours) for row in rows], right=True),
        Column("who", [short_name(peer.contender) if peer else "-" for peer in peers], rank=1),
    ]


def whose(rows: Sequence[Standing]) -> str:
    """The contender that the others are compared with."""
    return "ours" if not rows or rows[0].subject == OURS else short_name(rows[0].subject)


# Why a time may be less than its bound, in a graph and called from Python.
BELOW = (
    "an overlapped launch hides part of an empty node's time, and data in the L2 needs no memory",
    "the empty call of this run was slowed by the host more than this one",
)


def _time(figure: Figure | None) -> str:
    """A time, or why there is none."""
    if figure is None:
        return "-"
    return microseconds(figure.time_us) if figure.time_us is not None else MARKS.get(figure.point.status, "-")


def _marked(figure: Figure | None) -> str:
    """A time with the mark of what is below its bound, where no multiple of the bound stands beside it."""
    return _time(figure) + ("*" if figure is not None and _is_below(figure) else "")


def _multiple(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _cost(value: float | None) -> str:
    return "-" if value is None else f"{100 * (value - 1):+.0f} %"


def _is_below(figure: Figure) -> bool:
    return figure.to_floor is not None and figure.to_floor < 1


def _of_floor(figure: Figure | None) -> str:
    if figure is None or figure.to_floor is None:
        return "-"
    return f"{figure.to_floor:.2f}{'*' if _is_below(figure) else ''}"


def _floor(found: Floor | None, clock: str) -> str:
    """A bound with what it is."""
    if found is None:
        return "-"
    return f"{microseconds(found.value_us)} {floor_words(found, clock)}"


def pivot_table(rows: Sequence[Standing], axes: tuple[str, str], *, wide: bool = False) -> RenderableType:
    """Times over ours by two axes, of the best peer or of every competitor. A cell is a geometric mean."""
    found = pivoted(rows, axes)
    what = "time" if CONTENDER in axes else "best peer's time"
    title = f"{what} over {whose(rows)}, {axes[0]} by {axes[1]}" + ("; geometric means" if found.several else "")
    columns = [Column(axes[0], [_named(axes[0], value) for value in found.down])]
    for value in found.across:
        means = [_multiple(cell[0] if (cell := found.cells.get((row, value))) else None) for row in found.down]
        columns.append(Column(_named(axes[1], value), means, right=True))
    return Fitted(title, columns, wide=wide)


def pivot_words(found: Pivot, axes: tuple[str, str]) -> list[dict[str, object]]:
    """The rows of a pivot for a page: full names, and geometric mean with range in each cell."""

    def cell(row: object, value: object) -> str:
        if (row, value) not in found.cells:
            return "-"
        mean, least, most = map(microseconds, found.cells[row, value])
        return mean if least == most else f"{mean} ({least} to {most})"

    def full(axis: str, value: object) -> str:
        return name_of(str(value)) if axis == CONTENDER else str(value)

    rows: list[dict[str, object]] = []
    for row in found.down:
        cells = {full(axes[1], value): cell(row, value) for value in found.across}
        rows.append({axes[0].replace("+", ", "): full(axes[0], row), **cells})
    return rows


def _named(axis: str, value: object) -> str:
    return short_name(str(value)) if axis == CONTENDER else str(value)


def work_table(points: Sequence[Point], *, wide: bool = False) -> RenderableType:
    """Counts and compiled figures, one row for each point."""
    counted = [point for point in sorted(points, key=lambda item: (item.case, item.contender)) if point.work]
    works = [point.work for point in counted if point.work]
    counts = [work.counts for work in works]

    def compiled(field: str) -> list[str]:
        return [_joined(getattr(item, field) for item in work.compiled) for work in works]

    columns = [
        Column("case", [point.case.label for point in counted]),
        Column("contender", [short_name(point.contender) for point in counted]),
        Column("loaded kB", [f"{item.load_bytes / 1000:.1f}" for item in counts], right=True),
        Column("sectors ld", [str(item.load_sectors) for item in counts], rank=1, right=True),
        Column("sectors st", [str(item.store_sectors) for item in counts], rank=2, right=True),
        Column("programs", [f"{item.active_programs}/{item.programs}" for item in counts], rank=1, right=True),
        Column("busiest ld/st", [f"{item.busiest_loads}/{item.busiest_stores}" for item in counts], rank=4, right=True),
        Column("regs", compiled("registers"), rank=3, right=True),
        Column("spill B", compiled("spill_bytes"), rank=4, right=True),
        Column("load bits", compiled("widest_load_bits"), rank=4, right=True),
    ]
    return Fitted("work clock: counts of one launch, not times", columns, wide=wide)


def _joined(values: Iterable[int]) -> str:
    return "+".join(map(str, values)) or "-"


def ratios(of: Sequence[Point], subject: str = OURS) -> RenderableType:
    """Geometric mean and range of each contender's time over the subject's, for each clock, over common points."""
    lines: list[str] = []
    clocks: tuple[ClockName, ...] = ("graph", "eager", "prepare")
    for clock in clocks:
        points = [point for point in of if point.clock == clock and point.status == "ok"]
        for op in OPS:
            lines += _ratios(clock, op, [point for point in points if point.case.op == op], subject)
        spreads = [spread for point in points if (spread := process_spread(point)) is not None]
        if spreads:
            middle, worst = f"{100 * median(spreads):.2f} %", f"{100 * max(spreads):.2f} %"
            lines.append(f"{clock}: between processes the log time varies by {middle} (median sd), {worst} at worst")
    return Text("\n".join(lines) + "\n" if lines else "")


def _ratios(clock: ClockName, op: Op, points: Sequence[Point], subject: str) -> Iterator[str]:
    by_case = _by_case(points)
    what = clock if op == "lookup" else f"{op}, {clock}"
    for name in _columns(points):
        values = [
            _value(row[name]) / _value(row[subject]) for row in by_case.values() if name in row and subject in row
        ]
        if name == BASE and values:
            costs = [with_lora(op, 1 / value) for value in values]
            low, high = _cost(min(costs)), _cost(max(costs))
            yield f"{what}: LoRA costs {_cost(geometric_mean(costs))} ({low} to {high}, {_cases(len(costs))})"
        elif name != subject and values:
            whom = "ours" if subject == OURS else f"that of {short_name(subject)}"
            yield (
                f"{what}: {short_name(name)} takes {geometric_mean(values):.2f} times {whom} "
                f"({min(values):.2f} to {max(values):.2f}, {_cases(len(values))})"
            )


def _cases(count: int) -> str:
    return "1 case" if count == 1 else f"{count} cases"


def errors(points: Sequence[Point]) -> RenderableType:
    """For each op that rounds, each contender's largest error, and at how many common points ours is larger.

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
            competes = both and name not in (OURS, BASE)
            beside = f"; ours errs by more at {larger} of {len(both)} points" if competes else ""
            beside = "; it is the product without LoRA, rounded once" if name == BASE else beside
            lines.append(f"{op}: {short_name(name)} errs by {max(errs.values()):.2g} of the largest value{beside}")
    return Text("\n".join(lines) + "\n" if lines else "")


def _error(point: Point) -> float | None:
    """None for what was not compared, or is a copy that has to be equal."""
    return point.check.max_error if point.check and point.check.tolerance > 0 else None


def failures(points: Sequence[Point]) -> RenderableType:
    """Each point that is not ok, with its reason. Those that differ only in the case share a line."""
    groups: dict[tuple[str, str, str, str | None], list[str]] = {}
    for point in points:
        if point.status != "ok":
            groups.setdefault((point.status, point.contender, point.clock, point.reason), []).append(point.case.label)
    lines = []
    for (status, contender, clock, reason), labels in groups.items():
        shown = ", ".join(labels[:3]) + (", ..." if len(labels) > 3 else "")
        lines.append(f"{status}: {contender}, {clock} clock, {_cases(len(labels))} ({shown}): {reason}")
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
