"""A history as text: its progress, its changes, a table for each point; the steps of a bisection."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.text import Text

from bench.execute.bisect import BisectEvent, Compared, Comparing, Named
from bench.execute.confirm import Confirmed, ConfirmEvent, Confirming, OutOfBudget
from bench.execute.history import HistoryEvent, NothingLeft, Stored, Visiting
from bench.execute.pairs import StageStarted
from bench.execute.tasks import GpuLost, Measured
from bench.judge.changes import Change
from bench.judge.history import History
from bench.judge.moves import Move
from bench.judge.series import TIME, Era, Series
from bench.model.history import Commit, Entry
from bench.model.paths import shown
from bench.model.verdict import Verdict
from bench.show.fit import Column, Fitted
from bench.show.gate import progress_console
from bench.show.labels import case_label
from bench.show.tables import MARKS, microseconds, short_name

SUBJECT_WIDTH = 48
SUSPECTS = 4  # commits that a change may lie at and that are listed by name


def follow(events: Iterable[HistoryEvent], console: Console, folder: Path) -> None:
    """Consume a session's events and print a line for each process of a commit."""
    visiting: Visiting | None = None
    begun, failed = time.monotonic(), 0
    for event in events:
        if isinstance(event, Visiting):
            visiting, begun, failed = event, time.monotonic(), 0
        elif isinstance(event, Measured):
            failed += event.point.status not in ("ok", "skipped")
        elif isinstance(event, GpuLost):
            console.print(f"{event.gpu} takes no more points: {event.reason}", soft_wrap=True)
        elif isinstance(event, NothingLeft):
            console.print(f"nothing left to measure: all {event.commits} commits are in {shown(folder)}")
        elif isinstance(event, Stored):
            console.print(_stored(event, visiting, time.monotonic() - begun))


def _stored(event: Stored, visiting: Visiting | None, seconds: float) -> str:
    commit, points = event.entry.commit, event.entry.results.points
    label = f"{commit.short} {_shortened(commit.subject)}"
    if event.taken_over:
        return f"{label}: its library is that of {(event.entry.counted_at or '')[:9]}, and so are its counts"
    assert visiting is not None
    failed = [point for point in points if point.status not in ("ok", "skipped")]
    role = "anchor, " if visiting.anchor else ""
    place = f"{role}process {visiting.place} of {visiting.last}"
    found = f"{len(points) - len(failed)} points ok"
    if failed:
        found += f", {len(failed)} not: {failed[0].status}: {failed[0].reason}"
    return f"{label} ({place}, {seconds:.0f} s): {found}"


def added(path: Path, entry: Entry, written: Path) -> str:
    """The line about an added file."""
    points = len(entry.results.points)
    return f"{path}: {points} points of {entry.commit.short}, written to {shown(written)}"


def tables(history: History) -> RenderableType:
    """Everything: what was measured, the changes, the failures, and a table for each point."""
    parts: list[RenderableType] = [Text(heading(history))]
    parts += [Text("\n".join(change_lines(history)) + "\n")]
    if said := move_lines(history) + gone_lines(history):
        parts += [Text("\n".join(said) + "\n")]
    if failures := failure_lines(history):
        parts += [Text("\n".join(failures) + "\n")]
    for era in history.eras:
        parts.append(Text(f"--- {era_label(era)}"))
        parts += [_table(history, era, group) for group in _points(era)]
    return Group(*parts)


def heading(history: History) -> str:
    """The line of commits, the machine, and how much was measured."""
    shown = {item.commit.sha for era in history.eras for series in era.series for item in series.observations}
    first, last = history.line[0].short, history.line[-1].short
    lines = [f"{len(shown)} commits of {first} to {last}, {history.clock} clock"]
    if history.missing:
        names = ", ".join(commit.short for commit in history.missing[:6])
        more = ", ..." if len(history.missing) > 6 else ""
        lines.append(f"not measured: {len(history.missing)} of the line ({names}{more})")
    if any(not series.anchored for era in history.eras for series in era.series) and history.clock != "work":
        lines.append("some series hold results without an anchor commit: their sessions' drift is in them")
    return "\n".join(lines) + "\n"


def era_label(era: Era) -> str:
    """One instrument on one machine, and what began the era."""
    gpu = era.environment.identity.get("gpu") or "no GPU"
    begins = f"; new series: {era.begins}" if era.begins else ""
    return f"{gpu}, measuring code {era.instrument.version[:7]}, seed {era.instrument.seed}{begins}"


def change_lines(history: History) -> list[str]:
    """One line for each commit that changed something, with its largest change and its neighbours."""
    lines = []
    for found in history.of_commit().values():
        largest = max(found, key=lambda change: (change.worse, abs(change.ratio - 1)))
        worse, better = [c for c in found if c.worse], [c for c in found if not c.worse]
        counts = " and ".join(f"{len(part)} {word}" for part, word in ((worse, "worse"), (better, "better")) if part)
        lines += [
            f"{_blame(largest)}: {counts}; most: {_where(largest.series)} {size(largest)}",
            f"    code, between {largest.before.short} and "
            f"{largest.after.short if largest.after else 'the end of the line'}: {_shortened(largest.commit.subject)}",
        ]
    return lines or ["no change of level"]


def move_lines(history: History) -> list[str]:
    """For each era after the first, what began it and which levels moved."""
    lines = []
    for era in history.eras[1:]:
        here = [move for move in history.moves if any(move.series == series for series in era.series)]
        if not here:
            lines.append(f"{era.begins or 'another environment'}: no level moved that both measured")
        for causes in dict.fromkeys(move.causes for move in here):
            alike = [move for move in here if move.causes == causes]
            most = max(alike, key=lambda move: (move.worse, abs(move.ratio - 1)))
            why = ", ".join(f"{cause.kind}: {cause.what}" for cause in causes) or "another environment"
            lines.append(f"{why}: {len(alike)} moved; most: {_where(most.series)} {_moved(most)}")
    return lines


def _moved(move: Move) -> str:
    assert move.before.value and move.after.value
    old, new = move.before.commit.short, move.after.commit.short
    at = f"at {new}, which both measured" if old == new else f"from {old} to {new}, so the code is among the causes"
    if move.series.figure != TIME:
        return f"{move.series.figure} {move.before.value.value:.0f} -> {move.after.value.value:.0f} {at}"
    return f"{100 * (move.ratio - 1):+.1f} % {at}"


def gone_lines(history: History) -> list[str]:
    """Changes that were undone, one line for each pair of commits."""
    counts = Counter((one.change.commit.short, one.back.commit.short) for one in history.gone)
    return [f"{count} of {begun} went away with {back} (--all lists them)" for (begun, back), count in counts.items()]


def failure_lines(history: History) -> list[str]:
    """Why commits have no figure."""
    return [f"{short} has no figure: {'; '.join(reasons)}" for short, reasons in history.failures().items()]


def size(change: Change) -> str:
    """The size of a change: a time with its interval, a count with both values."""
    if change.low is None or change.high is None:
        return f"{change.series.figure} {change.old:.0f} -> {change.new:.0f}"
    parts = [f"{100 * (value - 1):+.1f}" for value in (change.ratio, change.low, change.high)]
    return f"{parts[0]} % ({parts[1]} to {parts[2]})"


def _blame(change: Change) -> str:
    """The commit; or all that it may be, where those before it were not measured."""
    names = [commit.short for commit in change.suspects]
    if len(names) == 1:
        return names[0]
    listed = ", ".join(names) if len(names) <= SUSPECTS else f"{len(names)} commits from {names[0]} to {names[-1]}"
    return f"one of {listed} (only the last was measured)"


def _where(series: Series) -> str:
    return f"{short_name(series.contender)}, {series.case.label}"


def _points(era: Era) -> list[list[Series]]:
    """The series of each case and contender together: one of a time, several of counts."""
    groups: dict[tuple[object, str], list[Series]] = {}
    for series in era.series:
        groups.setdefault((series.case, series.contender), []).append(series)
    return list(groups.values())


def _table(history: History, era: Era, group: Sequence[Series]) -> Fitted:
    """One row a commit; of counts the columns that ever differ, or the first if none does."""
    timed = group[0].figure == TIME
    shown = [series for series in group if timed or len({item.value for item in series.measured}) > 1] or group[:1]
    label = case_label(group[0].case, {series.case for series in era.series})
    commits = [item.commit for item in group[0].observations]
    columns = [
        Column("commit", [commit.short for commit in commits]),
        Column("date", [(commit.time or "")[:10] for commit in commits], rank=len(shown) + 1),
        Column("subject", [_shortened(commit.subject) for commit in commits], rank=len(shown) + 2, words=True),
    ]
    for place, series in enumerate(shown):
        value, bounds, change = zip(*(_cells(history, series, row) for row in range(len(commits))), strict=True)
        columns.append(Column("us a call" if timed else series.figure, value, right=True, rank=place))
        if timed:
            columns.append(Column("95 %", bounds, right=True, rank=len(shown)))
        columns.append(Column("change", change, right=True, rank=place, style="bold"))
    return Fitted(f"{short_name(group[0].contender)}, {label}", columns)


def _cells(history: History, series: Series, row: int) -> list[str]:
    """Value, its interval if it is a time, and the change there."""
    item = series.observations[row]
    here = [c for c in history.changes if c.series == series and c.commit.sha == item.commit.sha]
    mark = size(here[0]).removeprefix(f"{series.figure} ") if here else ""
    if series.figure != TIME:
        return [f"{item.value.value:.0f}" if item.value else MARKS.get(item.status, item.status), "", mark]
    value = microseconds(item.value.value) if item.value else MARKS.get(item.status, item.status)
    bounds = ""
    if item.value and item.value.low is not None:
        bounds = f"{microseconds(item.value.low)} - {microseconds(item.value.high)}"
    return [value, bounds, mark]


def _shortened(text: str) -> str:
    return text if len(text) <= SUBJECT_WIDTH else text[: SUBJECT_WIDTH - 3] + "..."


# --- confirm -------------------------------------------------------------------------------------------------------


def follow_confirmation(events: Generator[ConfirmEvent, None, None]) -> bool:
    """Consume a confirmation and print it. Returns whether every change was measured and has an answer."""
    from bench.show.tables import console

    steps, out, answered = progress_console(), console(), True
    for event in events:
        if isinstance(event, Confirming):
            pair = f"{event.before.short} against {event.after.short}"
            steps.print(f"{pair}: {event.points} changed points, {event.left_s:.0f} s of the budget left")
        elif isinstance(event, Confirmed):
            out.print(_confirmed(event))
            answered &= event.verdict is not None
        elif isinstance(event, OutOfBudget):
            names = ", ".join(dict.fromkeys(change.commit.short for change in event.left))
            out.print(f"not tried: {len(event.left)} changes at {names}: the budget is spent ({event.spent_s:.0f} s)")
            answered = False
    return answered


def _confirmed(event: Confirmed) -> str:
    change = event.change
    what = f"{_blame(change)}: {_where(change.series)} {size(change)}"
    if event.verdict is None:
        return f"{what}: cannot be compared: {event.reason}"
    return f"{what}: {'confirmed' if event.holds else 'NOT confirmed'}, in turns {_ratio(event.verdict)}"


# --- bisect --------------------------------------------------------------------------------------------------------


def follow_bisection(events: Generator[BisectEvent, None, None]) -> Named:
    """Consume a bisection and print it. Returns its result."""
    from bench.show.tables import console

    steps, out = progress_console(), console()
    outcome: Named | None = None
    for event in events:
        if isinstance(event, Comparing):
            steps.print(f"{event.before.short} against {event.after.short}, {event.candidates} candidates left")
        elif isinstance(event, StageStarted):
            steps.print(f"    {event.stage}: {event.points} points in {event.processes} pairs of processes")
        elif isinstance(event, Compared):
            out.print(_compared(event))
        elif isinstance(event, Named):
            outcome = event
    assert outcome is not None, "a bisection ends by naming"
    out.print(_outcome(outcome))
    return outcome


def _compared(event: Compared) -> str:
    pair = f"{event.before.short} -> {event.after.short}"
    if event.verdict is None:
        return f"{pair}: cannot be compared: {event.reason}"
    return f"{pair}: {_ratio(event.verdict)}, {'the new' if event.changed else 'the old'} level"


def _ratio(verdict: Verdict) -> str:
    assert verdict.ratio is not None
    low, high = verdict.low or verdict.ratio, verdict.high or verdict.ratio
    parts = [f"{100 * (value - 1):+.1f}" for value in (verdict.ratio, low, high)]
    return f"{short_name(verdict.contender)}, {verdict.case.label} {parts[0]} % ({parts[1]} to {parts[2]})"


def _outcome(named: Named) -> str:
    names = ", ".join(commit.short for commit in named.suspects)
    if named.certain and named.proof is not None:
        commit: Commit = named.suspects[0]
        return f"{commit.short} {commit.subject}: {named.proof.status}, against its parent {_ratio(named.proof)}"
    if len(named.suspects) == 1:
        reason = named.proof.reason if named.proof else "it cannot be compared with its parent"
        return f"{names} has the new level, but its own share is not confirmed: {reason}"
    return f"one of {names}: those between cannot be measured"
