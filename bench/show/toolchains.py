"""The same commits under two toolchains, as text: what differs, the mean difference, and a table for each point."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import geometric_mean

from rich.console import Group, RenderableType
from rich.text import Text

from bench.judge.series import TIME
from bench.judge.toolchains import Beside, Crossing
from bench.model.case import Case
from bench.show.fit import Column, Fitted
from bench.show.labels import case_label
from bench.show.tables import microseconds, short_name

DRIFT = "each time has its session's drift in it: these are of two sessions"


def tables(found: Sequence[Crossing]) -> RenderableType:
    """For each two toolchains: a line for each contender and figure, then the figures that differ, point by point."""
    parts: list[RenderableType] = []
    for crossing in found:
        parts.append(Text("\n".join(_heading(crossing)) + "\n"))
        different = [row for row in crossing.rows if row.new.value != row.old.value]
        cases = {row.case for row in crossing.rows}
        parts += [_table(group, cases) for group in _groups(different)]
    return Group(*parts)


def _heading(crossing: Crossing) -> list[str]:
    commits = crossing.commits
    lines = [f"{crossing.differs}: {len(commits)} commits, {commits[0].short} to {commits[-1].short}"]
    if any(row.figure == TIME for row in crossing.rows):
        lines.append(DRIFT)
    for contender, figure in dict.fromkeys((row.contender, row.figure) for row in crossing.rows):
        rows = [row for row in crossing.rows if (row.contender, row.figure) == (contender, figure)]
        lines.append(f"    {short_name(contender)}, {'us a call' if figure == TIME else figure}: {_mean(rows)}")
    return lines


def _mean(rows: Sequence[Beside]) -> str:
    equal = sum(row.new.value == row.old.value for row in rows)
    if equal == len(rows):
        return "equal everywhere"
    ratios = [row.ratio for row in rows if row.ratio]
    mean = f"{100 * (geometric_mean(ratios) - 1):+.1f} % in the geometric mean" if ratios else "nothing to divide by"
    return f"{mean} of {len(rows)}, {equal} equal"


def _groups(rows: Sequence[Beside]) -> list[list[Beside]]:
    """The rows of each contender and case together."""
    groups: dict[tuple[str, Case], list[Beside]] = {}
    for row in rows:
        groups.setdefault((row.contender, row.case), []).append(row)
    return list(groups.values())


def _table(rows: Sequence[Beside], cases: set[Case]) -> Fitted:
    columns = [
        Column("commit", [row.commit.short for row in rows]),
        Column("figure", ["us a call" if row.figure == TIME else row.figure for row in rows]),
        Column("older", [_value(row, row.old.value) for row in rows], right=True),
        Column("newer", [_value(row, row.new.value) for row in rows], right=True),
        Column("newer / older", [f"{row.ratio:.3f}" if row.ratio else "" for row in rows], right=True, style="bold"),
    ]
    return Fitted(f"{short_name(rows[0].contender)}, {case_label(rows[0].case, cases)}", columns)


def _value(row: Beside, value: float) -> str:
    return microseconds(value) if row.figure == TIME else f"{value:.0f}"
