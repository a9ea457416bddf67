"""The gate's report on a terminal: the table of what matters, a summary line, and commands to see it again."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text

from bench.execute.pairs import PairEvent, StageStarted
from bench.judge import keeping
from bench.judge.compare import Comparison, Row
from bench.judge.folding import times
from bench.judge.repeats import Repeat
from bench.model.text import for_log, one_line
from bench.model.verdict import Change, Exit, Report, Verdict
from bench.show import again
from bench.show.console import console
from bench.show.console import progress_console as progress_console
from bench.show.fit import Column, Fitted
from bench.show.labels import row_labels, usual
from bench.show.tables import microseconds, short_name

QUIET_ROWS = 10  # passing points that the table still shows, the slowest first
STYLES = {"slow": "bold red", "error": "red", "inconclusive": "yellow", "fast": "green"}
ORDER = ("slow", "error", "inconclusive", "fast", "pass", "skipped")
MEANING = {
    Exit.PASS: "pass",
    Exit.REGRESSION: "REGRESSION",
    Exit.USAGE: "error",
    Exit.CANNOT_JUDGE: "CANNOT JUDGE",
}
SAY_EVERY_S = 10.0


def one_lined(report: Report) -> Report:
    """The report with all texts on one line of plain characters, because reasons come from exceptions and tools."""
    found: Report = _one_lined(report)
    return found


def _one_lined(value: Any) -> Any:
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, msgspec.Struct):
        return type(value)(**{name: _one_lined(getattr(value, name)) for name in value.__struct_fields__})
    if isinstance(value, dict):
        return {one_line(key): _one_lined(item) for key, item in value.items()}
    return [_one_lined(item) for item in value] if isinstance(value, list) else value


def worst_first(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Verdicts by status, and within a status by ratio, the slowest first."""
    return sorted(verdicts, key=lambda item: (ORDER.index(item.status), -(item.ratio or 0.0), item.case))


def table_text(report: Report) -> str:
    """The terminal's report as text. It has colours only if standard output is a terminal."""
    out = console()
    with out.capture() as captured:
        for part in _parts(report):
            out.print(part, soft_wrap=isinstance(part, Text))  # a command must stay one line
    return for_log(str(captured.get()))  # a line that is folded may begin with anything


def shown(report: Report) -> RenderableType:
    """The terminal's report as one printable."""
    report.verdicts = worst_first(report.verdicts)
    return Group(*_parts(one_lined(report)))


def _parts(report: Report) -> list[RenderableType]:
    said = keeping.said(report)
    parts: list[RenderableType] = [Text(said, style="bold red")] if said else []
    rows = grouped(_rows(report))
    if rows:
        parts += [_work_table(report, rows) if report.counted else _timed_table(report, rows), Text()]
    parts += [Text(f"note: {note}") for note in report.notes]
    parts += [Text(f"refused: {reason}", style="red") for reason in report.refusals]
    parts += [Text(f"again: {command}") for command in commands(report)]
    parts.append(Text(summary(report), style="bold"))
    return parts


def grouped(verdicts: Iterable[Verdict]) -> list[tuple[Verdict, int]]:
    """Verdicts in their order. Those without figures that say the same become one, with the number of others."""
    found: dict[object, tuple[Verdict, int]] = {}
    for item in verdicts:
        plain = item.ratio is None and not item.changes and item.status != "pass"
        key: object = (item.status, item.reason) if plain else id(item)
        first, more = found.get(key, (item, -1))
        found[key] = first, more + 1
    return list(found.values())


def _rows(report: Report) -> list[Verdict]:
    """What matters: everything that is not a plain pass, and the slowest of those; all of them in a self-check."""
    if report.use == "self-check":
        return report.verdicts
    quiet = [item for item in report.verdicts if item.status in ("pass", "skipped")]
    return [item for item in report.verdicts if item not in quiet] + quiet[:QUIET_ROWS]


def _timed_table(report: Report, rows: Sequence[tuple[Verdict, int]]) -> Fitted:
    items = [item for item, _ in rows]
    cases = [item.case for item in report.verdicts]
    columns = [
        Column("verdict", _verdicts(rows)),
        Column("case", point_labels(items, report.verdicts)),
        Column("contender", [short_name(item.contender) for item in items]),
        Column("clock", [item.clock for item in items], rank=2),
        Column("before", [microseconds(item.before_us) for item in items], rank=3, right=True),
        Column("after", [microseconds(item.after_us) for item in items], rank=3, right=True),
        Column("change", [percent(item.ratio) for item in items], right=True),
        Column("95 %", [interval(item) for item in items], rank=1, right=True),
        Column("floor", [percent(item.floor) for item in items], rank=4, right=True),
        Column("sees", [percent(item.detectable) for item in items], rank=4, right=True),
        Column("reason", [item.reason for item in items], words=True),
    ]
    return Fitted(f"{report.after.label} against {report.before.label}, us{usual(cases)}", columns)


def _work_table(report: Report, rows: Sequence[tuple[Verdict, int]]) -> Fitted:
    items = [item for item, _ in rows]
    cases = [item.case for item in report.verdicts]
    changes = [", ".join(change_text(change) for change in item.changes) for item in items]
    columns = [
        Column("verdict", _verdicts(rows)),
        Column("case", point_labels(items, report.verdicts)),
        Column("contender", [short_name(item.contender) for item in items]),
        Column("changed figures", changes, words=True),
        Column("reason", [item.reason for item in items], words=True),
    ]
    sides = "" if report.use == "work" else f" of {report.after.label} against {report.before.label}"
    return Fitted(f"counted work{sides}: not times{usual(cases)}", [column for column in columns if any(column.cells)])


def _verdicts(rows: Sequence[tuple[Verdict, int]]) -> list[Text]:
    return [Text(times(item.status, more), style=STYLES.get(item.status, "")) for item, more in rows]


def planted(item: Verdict) -> str:
    """`, planted 10 %` of a point that the gate's own test slowed down: a case may stand in a report at several."""
    return f", planted {100 * item.extra_share:g} %" if item.extra_share else ""


def point_labels(items: Sequence[Verdict], among: Sequence[Verdict]) -> list[str]:
    """Labels of rows, see `row_labels`, with what was planted."""
    labels = row_labels([item.case for item in items], [item.case for item in among])
    return [label + planted(item) for item, label in zip(items, labels, strict=True)]


def percent(ratio: float | None) -> str:
    """1.052 -> +5.2 %."""
    return "-" if ratio is None else f"{100 * (ratio - 1):+.1f} %"


def interval(item: Verdict | Row) -> str:
    """Both ends of the 95 % interval."""
    return "-" if item.low is None or item.high is None else f"{percent(item.low)[:-2]} .. {percent(item.high)}"


def change_text(change: Change) -> str:
    """`registers 24 -> 32`."""
    return f"{change.figure} {change.before} -> {change.after}"


def summary(report: Report) -> str:
    """One line, whatever the order of the verdicts: the result, the counts, the worst point, the time taken."""
    verdicts = worst_first(report.verdicts)
    found = Counter(item.status for item in verdicts)
    counts = ", ".join(f"{count} {status}" for status, count in found.items()) or "nothing judged"
    worst = next((item for item in verdicts if item.ratio is not None), None)
    tail = ""
    if worst:
        tail = f"; worst {percent(worst.ratio)} ({worst.case.label}{planted(worst)}, {short_name(worst.contender)})"
    blind = [item.detectable for item in report.verdicts if item.detectable is not None]
    if report.use == "self-check" and blind:
        tail += f"; every slowdown from {percent(max(blind))} on would be seen, from {percent(min(blind))} at best"
    noisy = sum("too noisy" in item.reason for item in report.verdicts if item.status == "pass")
    tail += f"; {noisy} too noisy to see the target" if noisy else ""
    allowed = keeping.said(report) if report.rules_allowed else ""
    reason = f": {report.refusals[0]}" if report.refusals else f": {allowed}" if allowed else ""
    points = len(report.verdicts)
    spent = f"; {report.duration_s:.0f} s, {report.duration_s / points:.2f} s a point" if points else ""
    return f"gate {report.use}: {MEANING[report.exit_code]}{reason} ({counts}{tail}{spent})"


def commands(report: Report) -> list[str]:
    """For each flagged point a command that shows it again; one for all points with the same command."""
    return [reproduce(report, item) for item, _ in grouped(report.verdicts) if item.blocks]


def reproduce(report: Report, item: Verdict) -> str:
    """The same comparison of this point only. A stored baseline is best checked against its commit."""
    choice = ["-c", item.contender, "--case", again.case_option(item.case)]
    return shlex.join([*again.BENCH, *_compared(report, item.clock), *report.selection, *choice])


def _compared(report: Report, clock: str) -> list[str]:
    """The verb that makes this comparison, with its options."""
    before, after = report.before, report.after
    if report.use == "work":
        return ["gate", "--clock", "work"]
    if report.use == "against-sglang":
        if before.sha and before.sha.startswith(before.label):  # commits of a checkout, which the gate does not take
            line = f"{before.sha}..{after.sha}"
            return ["history", "bisect", "--sglang-checkout", "CHECKOUT", "--commits", line]
        return ["gate", "--against-sglang", before.label, "--sglang", after.label, "--clock", clock]
    if report.use == "self-check" or before.sha is None:
        return ["gate", "--self-check", "--clock", clock]
    return ["gate", "--against", before.sha, "--clock", clock]


def show_comparison(comparison: Comparison) -> None:
    """Print the table of `compare`."""
    out = console()
    for part in _comparison_parts(comparison):
        out.print(part, soft_wrap=isinstance(part, Text))


def _comparison_parts(comparison: Comparison) -> list[RenderableType]:
    rows = comparison.rows
    cases = [row.before.case for row in rows]
    columns = [
        Column("case", row_labels(cases)),
        Column("contender", [short_name(row.before.contender) for row in rows]),
        Column("clock", [row.before.clock for row in rows], rank=1),
        Column("change", [percent(row.ratio) for row in rows], right=True),
        Column("95 %", [interval(row) for row in rows], rank=1, right=True),
        Column("p", ["-" if row.p is None else f"{row.p:.2g}" for row in rows], rank=2, right=True),
        Column("changed figures", [", ".join(map(change_text, row.changes)) for row in rows], words=True),
        Column("note", [row.note or "" for row in rows], words=True),
    ]
    title = f"{comparison.before.label} -> {comparison.after.label}{usual(cases)}"
    table = Fitted(title, [column for column in columns if any(column.cells)])
    # Before the rows: whoever reads the largest change first should know what it is not.
    parts: list[RenderableType] = []
    if comparison.apart:
        parts.append(Text(f"the changes below are not the code's alone: {comparison.apart}", style="bold red"))
    parts += [Text(f"not comparable: {reason}", style="red") for reason in comparison.warnings]
    parts += [Text()] * bool(parts) + [table, Text()]
    parts += [Text(f"note: {note}") for note in comparison.notes]
    parts.append(
        Text(f"{len(comparison.rows)} points in both, {comparison.missing} only in A, {comparison.new} only in B")
    )
    return parts


def _notes(row: Row) -> list[str]:
    return [change_text(change) for change in row.changes] + ([row.note] if row.note else [])


def comparison_rows(comparison: Comparison) -> list[dict[str, object]]:
    """The comparison as plain values, one row for each point. Ratios are B over A; the interval is 95 %.

    caveats: why the changes are not the code's alone, or not comparable; the same in every row.
    """
    apart = [f"not the code's alone: {comparison.apart}"] if comparison.apart else []
    caveats = "; ".join(apart + [f"not comparable: {reason}" for reason in comparison.warnings]) or None
    return [
        {
            "case": row.before.case.key,
            "contender": row.before.contender,
            "clock": row.before.clock,
            "ratio": row.ratio,
            "low": row.low,
            "high": row.high,
            "p": row.p,
            "notes": "; ".join(_notes(row)) or None,
            "caveats": caveats,
        }
        for row in comparison.rows
    ]


def follow_pairs(events: Iterable[PairEvent]) -> None:
    """Print from time to time how far an interleaved run is."""
    out = progress_console()
    done = total = 0
    said = time.monotonic()
    failures: Counter[str] = Counter()
    for event in events:
        if isinstance(event, StageStarted):
            done, total = 0, event.points * event.processes
            most = "up to " if event.stage == "confirm" else ""
            out.print(f"{event.stage}: {event.points} points in {most}{event.processes} pairs of processes")
            continue
        done += 1
        if event.point.status not in ("ok", "skipped"):
            message = f"{event.point.status} on side {event.point.side}: {event.point.contender}, {event.point.reason}"
            failures[message] += 1
            if failures[message] == 1:
                out.print(message)
        if time.monotonic() - said >= SAY_EVERY_S or done == total:
            out.print(f"{event.stage}: {done}/{total}")
            said = time.monotonic()
    for message, count in failures.items():
        if count > 1:
            out.print(f"{count} times: {message}")


def show_repeat(repeat: Repeat, report: Report) -> None:
    """Print one run of the gate's own test: its figures, and every verdict that is not a plain pass."""
    out = console()
    found = ", ".join(f"{100 * float(share):g} %: {hit} of {total}" for share, (hit, total) in repeat.found.items())
    out.print(
        f"{repeat.file}: exit {repeat.exit_code}, {repeat.verdicts}, worst {percent(repeat.worst_ratio)}, "
        f"sees {percent(repeat.median_detectable)} (median) {percent(repeat.largest_detectable)} (worst), "
        f"{repeat.duration_s:.1f} s, {repeat.start_s:.1f} of it starts and {repeat.open_s:.1f} processes, "
        f"{repeat.seconds_a_point:.2f} s a point" + (f"; found {found}" if found else "")
    )
    expected = "slow" if repeat.found else "pass"
    for item in worst_first(report.verdicts):
        if item.status not in (expected, "skipped"):
            name = f"{item.case.label} {item.case.cache} {short_name(item.contender)}"
            out.print(
                f"  {item.status}{planted(item)}: {name}: {percent(item.ratio)} ({interval(item)}): {item.reason}"
            )


def show_repeats(name: str, done: Sequence[Repeat], wanted: int) -> None:
    """Print the result of all runs."""
    shares = sorted({share for repeat in done for share in repeat.found}, key=float)
    for share in shares:
        tallies = [repeat.found[share] for repeat in done if share in repeat.found]
        hit, total = sum(tally[0] for tally in tallies), sum(tally[1] for tally in tallies)
        console().print(f"{name}: {100 * float(share):g} % found {hit} of {total}")
    quiet = sum(repeat.exit_code == 0 for repeat in done)
    left = f"; {wanted - len(done)} left: run the same command again" if len(done) < wanted else ""
    console().print(f"{name}: {len(done)} runs, {quiet} with exit 0{left}")
