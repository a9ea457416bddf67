"""Files of `bench serve` as tables: every mode under every load, ratios, spreads, answers, and where the time goes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from bench.engine import trace
from bench.engine.crossing import CrossDone, CrossLoadDone, CrossStarted
from bench.engine.run import CacheReady, Event, LoadDone, OutOfTime, Planned, ProcessDone, ProcessStarted, traced_loads
from bench.judge.answers import AnswerCheck, Bound, answer_checks, bound_of, planted
from bench.judge.crossing import crossed
from bench.judge.serving import (
    MAIN,
    ServedChange,
    ServedComparison,
    ServedFigure,
    failures,
    figures,
)
from bench.judge.spent import CompiledUnder, Spent, compiled, spent
from bench.judge.where import Where, where
from bench.model.served import SITES, START_PARTS, ServeResults, Site
from bench.model.serving import PEFT, Load, ServePlan, Setup, engines, not_crossed
from bench.show.amounts import MARKS, amount
from bench.show.crossing import cross_table, follow_line
from bench.show.fit import Column, Fitted

NAMED, NAMED_SHARE, NAME_LENGTH = 6, 0.005, 70  # kernels that no site has: so many, from such a share on, so long


def shown(figure: ServedFigure | None) -> str:
    """A figure, or why there is none. Of processes that are far apart both values, or of more the least to the most."""
    if figure is None:
        return "-"
    if figure.far_apart:
        values = [figure.by_repeat[repeat] for repeat in sorted(figure.by_repeat)]
        ends = values if len(values) == 2 else [min(values), max(values)]
        return (", " if len(values) == 2 else " to ").join(amount(value, figure.unit) for value in ends)
    return amount(figure.value, figure.unit) if figure.value is not None else MARKS.get(figure.status, "-")


def summary(results: ServeResults, of: Sequence[ServedFigure] | None = None, *, wide: bool = False) -> RenderableType:
    """All tables of a file, its heading, and what has no figure."""
    found = figures(results) if of is None else of
    parts: list[RenderableType] = [heading(results), modes_table(results, found, wide=wide), Text()]
    for kind in dict.fromkeys(figure.case.load.kind for figure in found):
        chosen = [figure for figure in found if figure.case.load.kind == kind]
        parts += [figures_table(results, kind, chosen, wide=wide), Text()]
    for table in answers_tables(results, wide=wide):
        parts += [table, Text()]
    parts += [times_table(spent(results), wide=wide), Text()]
    if of_triton := compiled(results):
        parts += [compiled_table(of_triton, wide=wide), Text()]
    traced = where(trace.anew(results))
    for load in dict.fromkeys(item.load for item in traced):
        parts += [where_table([item for item in traced if item.load == load], wide=wide), Text()]
    if results.cross_checks:
        parts += [cross_table(results, crossed(results), wide=wide), Text()]
    parts.append(failed(results))
    return Group(*parts)


def heading(results: ServeResults) -> RenderableType:
    """What ran, where, and how many of its processes are in the file."""
    run, code, identity = results.run, results.code, results.env.identity if results.env else {}
    versions = ", ".join(f"{name} {identity[name]}" for name in ("torch", "triton", "sglang") if identity.get(name))
    dirty = " + uncommitted changes" if code.dirty else ""
    lines = [
        f"serve profile {run.profile} on {identity.get('gpu') or 'no GPU'}, {versions}",
        f"commit {code.short or 'unknown'}{dirty}, {run.started_utc}, {run.duration_s:.0f} s, "
        f"{len(results.processes)} of {run.planned} engines",
        setup_words(results.setup),
        "attention by Triton, decode graphs on but in -eager modes, prefill graphs off, no prefix cache",
    ]
    return Text("\n".join(lines) + "\n")


def setup_words(setup: Setup) -> str:
    """The setup of an engine in words."""
    ranks = "+".join(map(str, setup.ranks))
    targets = {"all": "all modules", "ends": "embedding and lm_head", "attention": "q, k, v and o"}[setup.targets]
    gpus = f", {setup.tp} GPUs" if setup.tp > 1 else ""
    return (
        f"model {setup.model}, {setup.adapters} adapters of ranks {ranks} on {targets}, {setup.num_slots} slots{gpus}"
    )


def modes_table(results: ServeResults, of: Sequence[ServedFigure], *, wide: bool = False) -> RenderableType:
    """A row for each load and main figure, a column for each mode. Reference and plugin are shown at any width."""
    rows: dict[tuple[Load, str], dict[str, ServedFigure]] = {}
    for figure in of:
        if figure.name in MAIN:
            rows.setdefault((figure.case.load, figure.name), {})[figure.mode] = figure
    labels = [f"{load.label}: {name}" for load, name in rows]
    columns = [Column("load", labels, words=True)]
    for place, mode in enumerate(engines(results.run.modes)):
        kept = mode in (results.serving.reference, "plugin")
        cells = [shown(row.get(mode)) for row in rows.values()]
        columns.append(Column(mode, cells, rank=0 if kept else 1 + place, right=True))
    return Fitted("every mode, geometric mean of its processes", columns, wide=wide)


def figures_table(
    results: ServeResults, kind: str, of: Sequence[ServedFigure], *, wide: bool = False
) -> RenderableType:
    """One row for each load, figure and mode."""
    reference = results.serving.reference
    labels = [figure.case.load.label.removeprefix(f"{kind} ") for figure in of]
    columns = [
        Column(kind, labels),
        Column("figure", [figure.name for figure in of]),
        Column("mode", [figure.mode for figure in of]),
        Column("is", [shown(figure) for figure in of], right=True),
        Column(f"/{reference}", [_ratio(figure.to_reference) for figure in of], right=True, style="bold"),
        Column("/none", [_ratio(figure.to_none) for figure in of], rank=1, right=True),
        Column(
            "spread", ["far apart" if figure.far_apart else _spread(figure.spread) for figure in of], rank=2, right=True
        ),
        Column("processes", [str(len(figure.by_repeat)) for figure in of], rank=3, right=True),
    ]
    return Fitted(f"{kind}: of a time, a ratio below 1 is faster", columns, wide=wide)


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _spread(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def times_table(of: Sequence[Spent], *, wide: bool = False) -> RenderableType:
    """One row for each process: the parts of its start, what its first request compiles, and its measuring time."""

    def cells(value: Callable[[Spent], float | None]) -> list[str]:
        return [_seconds(value(item)) for item in of]

    names = [name for name in START_PARTS if any(name in item.parts for item in of)]
    columns = [
        Column("mode", [item.mode for item in of]),
        Column("repeat", [str(item.repeat) for item in of], rank=1, right=True),
        Column("all", cells(lambda item: item.whole), right=True),
        Column("start", cells(lambda item: item.start), right=True),
        *(
            Column(name.removesuffix("_us"), cells(lambda item, name=name: item.parts.get(name)), rank=2, right=True)  # type: ignore[misc]  # mypy knows no defaults of a lambda
            for name in names
        ),
        *([Column("rest", cells(lambda item: item.rest), rank=2, right=True)] if names else []),
        Column("compile", cells(lambda item: item.waited), right=True),
        Column("measured", cells(lambda item: item.measured), right=True),
        Column("traced", cells(lambda item: item.traced), rank=1, right=True),
    ]
    title = "time of each process: its start, what the first request compiles, its figures; parts of a start beside it"
    return Fitted(title, columns, wide=wide)


COMPILED = (
    "compiled by Triton, in no figure of a load, for its warm-up waited: a server's first such request would wait"
)
COMPILED_HEADS = ("mode", "repeat", "load", "kernels", "took", "those that took longest")
NAMED = 3  # kernels in a row
RANKS = {"repeat": 2, COMPILED_HEADS[-1]: 1}  # the order in which columns make room


def compiled_rows(of: Sequence[CompiledUnder]) -> list[list[str]]:
    """The cells below COMPILED_HEADS of each load of each process under which Triton compiled something."""
    return [
        [
            item.mode,
            str(item.repeat),
            item.load.label,
            str(item.kernels),
            _seconds(item.took),
            ", ".join(f"{count} {name}" for name, count in list(item.by_name.items())[:NAMED]) or "-",
        ]
        for item in of
    ]


def compiled_table(of: Sequence[CompiledUnder], *, wide: bool = False) -> RenderableType:
    """The same as a table for a terminal."""
    cells = map(list, zip(*compiled_rows(of), strict=True))
    columns = [
        Column(head, column, rank=RANKS.get(head, 0), right=head in ("repeat", "kernels", "took"))
        for head, column in zip(COMPILED_HEADS, cells, strict=True)
    ]
    return Fitted(COMPILED, columns, wide=wide)


def _seconds(value: float | None) -> str:
    return "-" if not value else amount(value, "us")


def answers_tables(results: ServeResults, *, wide: bool = False) -> Iterator[RenderableType]:
    """A table for each mode that other modes' answers are compared with."""
    checks = answer_checks(results)
    for reference in dict.fromkeys(check.reference for check in checks):
        chosen = [check for check in checks if check.reference == reference]
        yield answers_table(chosen, reference, bound_of(results, reference), wide=wide)
    if lost := planted(results):
        yield planted_table(lost, wide=wide)


def answers_table(
    checks: Sequence[AnswerCheck], reference: str, bound: Bound | None, *, wide: bool = False
) -> RenderableType:
    """Whether modes answer alike, in nats."""
    verdicts = {"ok": "alike", "wrong": "WRONG", "unknown": "unknown", "other": "no LoRA"}
    columns = [
        Column("mode", [check.mode for check in checks]),
        Column("answers", ["equal to the bit" if check.equal else verdicts[check.status] for check in checks]),
        Column("mean", [_nats(check.mean_nats) for check in checks], right=True),
        Column("most", [_nats(check.max_nats) for check in checks], right=True),
        Column("changed", [f"{check.changed}/{check.prompts}" for check in checks], rank=1, right=True),
        Column("reason", [check.reason or "-" for check in checks], rank=2, words=True),
    ]
    title = f"log-probabilities beside {reference}'s: mean of the worst prompt, the largest, answers with another token"
    if bound is not None:
        why = f", twice the rounding of {reference} itself" if reference == PEFT else ""
        title += f"; at most {bound.mean_nats:.3g} and {bound.max_nats:.3g} allowed{why}"
    return Fitted(title, columns, wide=wide)


def planted_table(checks: Mapping[Site, AnswerCheck], *, wide: bool = False) -> RenderableType:
    """Whether the bound around the right answers would show a site whose adapters are lost."""
    columns = [
        Column("without", [*checks]),
        Column("would be", ["seen" if check.status == "wrong" else "NOT SEEN" for check in checks.values()]),
        Column("mean", [_nats(check.mean_nats) for check in checks.values()], right=True),
        Column("most", [_nats(check.max_nats) for check in checks.values()], right=True),
    ]
    return Fitted(f"{PEFT} without the adapters of a site, beside {PEFT}: a fault that was planted", columns, wide=wide)


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def where_table(of: Sequence[Where], *, wide: bool = False) -> RenderableType:
    """Kernel time of a pass: a row for each site, a column for each mode, and one for floors."""
    sites = [site for site in SITES if any(item.by_site[site] or site in item.floors for item in of)]
    columns = [Column("site", [*sites, "all kernels", "between kernels", "passes"])]
    floors = {site: least for item in of for site, least in item.floors.items()}
    for place, item in enumerate(of):
        cells = [amount(item.by_site[site], "us") if item.by_site[site] else "-" for site in sites]
        between = amount(item.between_us, "us") if item.between_us and item.between_us > 0 else "-"
        columns.append(
            Column(item.mode, [*cells, amount(item.total_us, "us"), between, _passes(item)], rank=place, right=True)
        )
    if floors:
        cells = [amount(floors[site], "us") if site in floors else "-" for site in sites]
        columns.insert(1, Column("floor", [*cells, "-", "-", "-"], rank=1, right=True))
    per = of[0].per if len({item.per for item in of}) == 1 else "pass or trace"
    lines = [line for item in of for line in where_lines(item)]
    title = f"where a {per} of {of[0].load.label} goes: kernel time under a profiler, shares and no figures"
    return Group(Fitted(title, columns, wide=wide), *map(Text, lines))


def where_lines(item: Where) -> Iterator[str]:
    """What the table leaves out or does not name."""
    if item.prepare is not None:
        yield f"{item.mode}: batch preparation on the host, in no trace: {amount(item.prepare, 'us')} a step"
    told = [(name, took) for name, took in item.unknown if took >= NAMED_SHARE * item.total_us][:NAMED]
    for name, took in told:
        yield f"{item.mode}: in rest or unplaced: {amount(took, 'us')} {name[:NAME_LENGTH]}"
    if item.left_out:
        yield f"{item.mode}: left out: {amount(item.left_out, 'us')} of kernels of other passes, a pass of these"
    for what, count in sorted(item.trace.lacking.items()):
        yield f"{item.mode}: left out of the trace: {count} {what}"


def _passes(item: Where) -> str:
    return f"{item.passes:g}" if item.passes else "-"


def compared(before: str, after: str, found: ServedComparison) -> RenderableType:
    """Two files, with one row for each figure."""
    changes = found.changes
    columns = [
        Column("load", [change.before.case.load.label for change in changes]),
        Column("figure", [change.before.name for change in changes]),
        Column("mode", [change.before.mode for change in changes]),
        Column("before", [shown(change.before) for change in changes], rank=1, right=True),
        Column("after", [shown(change.after) for change in changes], rank=1, right=True),
        Column("after/before", [_ratio(change.ratio) for change in changes], right=True, style="bold"),
        Column("95 %", [_bounds(change) for change in changes], rank=2, right=True),
        Column("spread", [_spread(change.spread) for change in changes], rank=3, right=True),
    ]
    lines = [f"not comparable: {reason}" for reason in found.warnings]
    lines.append(f"{len(changes)} figures in both, {found.missing} only in A, {found.new} only in B")
    title = f"{before} -> {after}; spread: the larger between processes of one file"
    return Group(Fitted(title, columns), Text(), *map(Text, lines))


def _bounds(change: ServedChange) -> str:
    return "-" if change.low is None or change.high is None else f"{change.low:.3f} - {change.high:.3f}"


def failed(results: ServeResults) -> RenderableType:
    """Each process and load without a figure, with its reason."""
    lines = [
        f"{item.status}: {item.mode}, repeat {item.repeat}, {item.what}: {item.reason}" for item in failures(results)
    ]
    return Text("\n".join(lines))


def planned(plan: ServePlan, *, where: bool, cross_check: bool = False) -> RenderableType:
    """What a run would do."""
    order = " ".join(run.mode for run in plan.runs)
    engines = "1 engine, " if len(plan.runs) == 1 else f"{len(plan.runs)} engines, one after another: "
    lines = [
        f"serve profile {plan.profile}: {engines}{order}",
        setup_words(plan.setup),
        "each is asked:",
        *(f"  {load.label}" for load in plan.loads),
    ]
    if where:
        traced = ", ".join(load.label for load in traced_loads(plan))
        lines.append(f"the first of each mode is then traced: {traced}")
    if cross_check:
        asked = ", ".join(load.label for load in plan.loads if not_crossed(load) is None)
        lines.append(f"then bench_serving puts loads on a server in each mode: {asked or 'none, it has no such loads'}")
    return Text("\n".join(lines))


def follow(events: Iterable[Event]) -> Iterator[str]:
    """A line for each event."""
    for event in events:
        if isinstance(event, Planned):
            yield f"{event.total} engines, {event.done} of them in the file"
        elif isinstance(event, CacheReady):
            yield f"model and adapters are ready ({event.seconds:.0f} s)"
        elif isinstance(event, ProcessStarted):
            yield f"{event.run.mode}, repeat {event.run.repeat}: starting"
        elif isinstance(event, LoadDone):
            yield f"  {event.load.load.label}: {_load_words(event)}"
        elif isinstance(event, ProcessDone):
            ending = "done" if event.process.status == "ok" else f"{event.process.status}: {event.process.reason}"
            yield f"{event.process.mode}, repeat {event.process.repeat}: {ending} ({event.process.duration_s:.0f} s)"
        elif isinstance(event, CrossStarted | CrossLoadDone | CrossDone):
            yield follow_line(event)
        elif isinstance(event, OutOfTime):
            yield f"the time limit is reached: {event.left} engines are left; continue with --resume"


def _load_words(event: LoadDone) -> str:
    item = event.load
    return f"{item.duration_s:.1f} s" if item.status == "ok" else f"{item.status}: {item.reason}"
