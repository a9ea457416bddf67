"""Engines across commits: a series for each load, mode and figure, and where it changed. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

from bench.judge.comparable import environment_refusals
from bench.judge.served_gate import Rules, ServedReport, judge
from bench.judge.serving import ServedFigure, Unit, figures
from bench.model.history import Commit
from bench.model.served import ServeResults
from bench.model.served_history import EngineEntry, EngineFigure
from bench.model.serving import Load, ServeCase, Setup

Key = tuple[Setup, Load, str, str]  # of a series: with the mode and the figure


@dataclass(frozen=True)
class Seen:
    """A figure at a commit. change: its verdict against the entry before (`slow` or `fast`) and the ratio of both."""

    commit: Commit
    figure: ServedFigure
    change: str | None = None
    ratio: float | None = None


@dataclass
class EngineHistory:
    """Every series, and the reasons why neighbouring entries are not compared."""

    series: dict[Key, list[Seen]] = field(default_factory=dict)
    breaks: list[str] = field(default_factory=list)


def entry_of(results: ServeResults, commit: Commit) -> EngineEntry:
    """The store's entry for a file. The file must say on which machine it was made."""
    assert results.env is not None
    kept = [
        EngineFigure(
            item.case.load,
            item.mode,
            item.name,
            item.unit,
            item.status,
            item.reason,
            [*item.by_repeat],
            [*item.by_repeat.values()],
        )
        for item in figures(results)
    ]
    run = results.run
    return EngineEntry(commit, run.id, run.started_utc, results.setup, results.serving, results.env, kept)


def figures_of(entry: EngineEntry) -> list[ServedFigure]:
    """The figures of an entry, in the form of a file's."""
    return [
        ServedFigure(
            ServeCase(entry.setup, item.load),
            item.mode,
            item.figure,
            cast("Unit", item.unit),
            item.status,
            item.reason,
            dict(zip(item.repeats, item.values, strict=True)),
        )
        for item in entry.figures
    ]


def history(entries: Sequence[EngineEntry], rules: Rules, wanted: Callable[[Load, str], bool]) -> EngineHistory:
    """The series of entries in their order. An entry is compared with the one before it of the same setup."""
    found = EngineHistory()
    last: dict[Setup, EngineEntry] = {}
    for entry in entries:
        changed = {}
        before = last.get(entry.setup)
        if before is not None:
            report = _judged(before, entry, rules)
            changed = {(item.load, item.mode, item.figure): item for item in report.verdicts}
            if report.refusals:
                pair = f"{before.commit.short} and {entry.commit.short}"
                found.breaks += [f"{pair} are not compared: {reason}" for reason in report.refusals]
                changed = {}
        for figure in figures_of(entry):
            load = figure.case.load
            if wanted(load, figure.mode):
                verdict = changed.get((load, figure.mode, figure.name))
                named = verdict.status if verdict and verdict.status in ("slow", "fast") else None
                seen = Seen(entry.commit, figure, named, verdict.ratio if verdict else None)
                found.series.setdefault((entry.setup, load, figure.mode, figure.name), []).append(seen)
        last[entry.setup] = entry
    return found


def _judged(before: EngineEntry, after: EngineEntry, rules: Rules) -> ServedReport:
    refusals = [*_refusals(before, after)]
    return judge(figures_of(before), figures_of(after), rules, before.serving.reference, refusals)


def _refusals(before: EngineEntry, after: EngineEntry) -> Iterator[str]:
    yield from environment_refusals(before.env, after.env)
    if before.serving != after.serving:
        yield "[serving] of bench.toml differs, so samples were not taken in the same way"
