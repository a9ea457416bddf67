"""Histories as plain values for the browser: a chart for each era, a line for each case and contender."""

from __future__ import annotations

from typing import Any

from bench.judge.changes import Change
from bench.judge.history import History
from bench.judge.series import TIME, Era, Observation, Series
from bench.model.case import Case
from bench.model.history import Commit
from bench.show import again
from bench.show.history import era_label, size
from bench.show.labels import case_label
from bench.show.page.runs import CLOCKS, op_words, rounds

COMMIT = "COMMIT"  # in a command: the browser puts a commit there


def line(name: str, history: History) -> list[dict[str, Any]]:
    """One line for each era. No line continues where the measuring code or the machine changes."""
    return [_era(name, history, era) for era in history.eras]


def _era(name: str, history: History, era: Era) -> dict[str, Any]:
    shown = {item.commit.sha for series in era.series for item in series.observations}
    commits = [commit for commit in history.line if commit.sha in shown]
    cases = {series.case for series in era.series}
    labels = {case: case_label(case, cases) for case in cases}
    return {
        "name": name,
        "gpu": str(era.environment.identity.get("gpu") or "no GPU"),
        "clock": history.clock,
        "title": f"{name}: {CLOCKS[history.clock]}",
        "era": era_label(era),
        "commits": [_commit(commit) for commit in commits],
        "missing": len(history.missing),
        "points": [_point(name, history, era, commits, group, labels) for group in _grouped(era).values()],
    }


def _grouped(era: Era) -> dict[tuple[Case, str], list[Series]]:
    """The series of a case and contender: one of a time, several of counts."""
    groups: dict[tuple[Case, str], list[Series]] = {}
    for series in era.series:
        groups.setdefault((series.case, series.contender), []).append(series)
    return groups


def _point(
    name: str, history: History, era: Era, commits: list[Commit], group: list[Series], labels: dict[Case, str]
) -> dict[str, Any]:
    case, contender, clock = group[0].case, group[0].contender, group[0].clock
    place = {commit.sha: index for index, commit in enumerate(commits)}
    measured = {
        entry.commit.sha: (entry, point)
        for entry in era.entries
        for point in entry.results.points
        if point.key == (case, contender, clock)
    }
    entry, point = list(measured.values())[-1]
    return {
        "case": case.key,
        "label": labels[case],
        "op": op_words(case.op),
        "contender": contender,
        "again": again.history(entry, point, name, COMMIT),
        "rounds": {place[sha]: rounds(point.rounds) for sha, (_, point) in measured.items() if point.rounds},
        "figures": {
            "us" if series.figure == TIME else series.figure: {
                "values": [_observation(item, place[item.commit.sha]) for item in series.observations],
                "changes": [_change(change, place) for change in history.changes if change.series == series],
            }
            for series in group
        },
    }


def _commit(commit: Commit) -> dict[str, Any]:
    return {
        "short": commit.short,
        "sha": commit.sha,
        "date": (commit.time or "")[:10],
        "subject": commit.subject,
    }


def _observation(item: Observation, place: int) -> list[Any]:
    """[place of the commit, value, low, high, status, reason]; what is missing at the end is left out."""
    value = item.value
    found = (value.value, value.low, value.high) if value else (None, None, None)
    row: list[Any] = [place, *found, item.status if item.status != "ok" else None, item.reason]
    while row[-1] is None:
        row.pop()
    return row


def _change(change: Change, place: dict[str, int]) -> dict[str, Any]:
    return {
        "at": place.get(change.commit.sha),
        "worse": change.worse,
        "size": size(change),
        "suspects": [commit.short for commit in change.suspects],
        "before": change.before.short,
        "after": change.after.short if change.after else None,
    }
