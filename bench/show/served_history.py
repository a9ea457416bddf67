"""Engines across commits: one table for each load and figure, a row for each commit, a column for each mode."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from bench.judge.served_series import EngineHistory, Seen
from bench.model.serving import Load, Setup
from bench.show.amounts import MARKS, amount
from bench.show.fit import Column, Fitted
from bench.show.serving import setup_words


def engine_tables(history: EngineHistory) -> RenderableType:
    """Everything: first the changes, then the tables, then what was not compared."""
    parts: list[RenderableType] = [Text("\n".join(_changes(history)) + "\n")]
    groups: dict[tuple[Setup, Load, str], dict[str, list[Seen]]] = {}
    for (setup, load, mode, figure), seen in history.series.items():
        groups.setdefault((setup, load, figure), {})[mode] = seen
    for (setup, load, figure), modes in groups.items():
        commits = list(dict.fromkeys(item.commit for seen in modes.values() for item in seen))
        columns = [Column("commit", [commit.short for commit in commits])]
        columns.append(Column("date", [(commit.time or "")[:10] for commit in commits], rank=len(modes) + 1))
        for place, (mode, seen) in enumerate(modes.items()):
            cells = {item.commit: _cell(item) for item in seen}
            columns.append(Column(mode, [cells.get(commit, "-") for commit in commits], rank=place, right=True))
        parts += [Fitted(f"{load.label}: {figure}; {setup_words(setup)}", columns), Text()]
    parts.append(Text("\n".join(history.breaks)))
    return Group(*parts)


def _changes(history: EngineHistory) -> list[str]:
    found = [
        f"{item.commit.short}: {item.change}: {mode}, {load.label}: {figure} {100 * (item.ratio - 1):+.1f} %"
        for (_, load, mode, figure), seen in history.series.items()
        for item in seen
        if item.change is not None and item.ratio is not None
    ]
    return found or ["no change of an engine's figure from one commit to the next"]


def _cell(item: Seen) -> str:
    figure = item.figure
    value = amount(figure.value, figure.unit) if figure.value is not None else MARKS.get(figure.status, "-")
    mark = "" if item.change is None or item.ratio is None else f" {100 * (item.ratio - 1):+.1f} %"
    return value + mark
