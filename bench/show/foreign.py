"""Figures of other tools as tables: two files side by side, and benchmarks across commits."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from bench.judge.foreign import ForeignRow, ForeignSeries
from bench.model.foreign import FIGURES, ForeignPoint, Tool
from bench.show.amounts import amount
from bench.show.fit import Column, Fitted
from bench.show.gate import percent

ONE_PROCESS = "one file is one process of an unverified program: ratios have no interval, and none is a verdict"


def comparison(rows: Sequence[ForeignRow], tool: Tool) -> RenderableType:
    """The table of two files."""
    columns = [
        Column("benchmark", [row.name for row in rows]),
        Column("machine", [row.machine for row in rows], rank=1),
        Column("before", [_cell(row.before) for row in rows], right=True),
        Column("after", [_cell(row.after) for row in rows], right=True),
        Column("change", [percent(row.ratio) for row in rows], right=True),
    ]
    return Group(Fitted(f"{tool}: {FIGURES[tool]}", columns), Text(), Text(f"note: {ONE_PROCESS}"))


def comparison_rows(rows: Sequence[ForeignRow]) -> list[dict[str, object]]:
    """The rows of the comparison as plain values, with times in us."""
    return [
        {
            "benchmark": row.name,
            "machine": row.machine,
            "before_us": row.before.value_us if row.before else None,
            "after_us": row.after.value_us if row.after else None,
            "ratio": row.ratio,
        }
        for row in rows
    ]


def _cell(point: ForeignPoint | None) -> str:
    return "-" if point is None else point.reason or amount(point.value_us, "us")


def tables(found: Sequence[ForeignSeries], tool: Tool) -> RenderableType:
    """Changes first, then a table for each benchmark."""
    lines = [
        f"{one.values[place][0].short}: {one.name} {percent(ratio)}" for one in found for place, ratio in one.changes
    ]
    parts: list[RenderableType] = [Text("\n".join(lines or ["no change of level"]) + "\n")]
    for one in found:
        marks = dict(one.changes)
        columns = [
            Column("commit", [commit.short for commit, _ in one.values]),
            Column("date", [(commit.time or "")[:10] for commit, _ in one.values], rank=1),
            Column(FIGURES[tool], [amount(value, "us") for _, value in one.values], right=True),
            Column("change", [percent(marks[i]) if i in marks else "" for i in range(len(one.values))], right=True),
        ]
        parts += [Fitted(f"{one.name}; {one.machine}", columns), Text()]
    return Group(*parts, Text(f"note: {ONE_PROCESS}"))
