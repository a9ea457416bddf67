"""Verdicts on engines as a table."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from bench.judge.served_gate import ServedReport, ServedVerdict
from bench.show.fit import Column, Fitted

ORDER = ("slow", "error", "inconclusive", "fast", "skipped", "pass")


def verdicts(before: str, after: str, report: ServedReport) -> RenderableType:
    """One row for each load, mode and figure, the worst first, and the report's notes."""
    rows = sorted(report.verdicts, key=lambda item: (ORDER.index(item.status), -(item.ratio or 0.0)))
    columns = [
        Column("verdict", [item.status for item in rows], style="bold"),
        Column("load", [item.load.label for item in rows]),
        Column("mode", [item.mode for item in rows]),
        Column("figure", [item.figure for item in rows]),
        Column("change", [_percent(item.ratio) for item in rows], right=True),
        Column("95 %", [_interval(item) for item in rows], rank=1, right=True),
        Column("p (Holm)", ["-" if item.p is None else f"{item.p:.2g}" for item in rows], rank=2, right=True),
        Column("reason", [item.reason or "-" for item in rows], rank=3, words=True),
    ]
    title = f"{before} -> {after}: worse is above 0, relative to {report.anchor or 'nothing'} in the same run"
    rules = report.rules
    counts = ", ".join(f"{sum(item.status == name for item in rows)} {name}" for name in ORDER)
    lines = [f"cannot judge: {reason}" for reason in report.refusals]
    lines += [
        f"{counts}; slower: past {rules.floor_pct:g} % and significant at {rules.alpha:g} over all of them (Holm)",
        {0: "passed", 1: "slower", 3: "cannot judge"}[int(report.exit_code)],
    ]
    return Group(Fitted(title, columns), Text(), *map(Text, lines))


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * (ratio - 1):+.1f} %"


def _interval(item: ServedVerdict) -> str:
    if item.low is None or item.high is None:
        return "-"
    return f"{100 * (item.low - 1):+.1f} to {100 * (item.high - 1):+.1f}"
