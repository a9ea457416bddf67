"""The gate's report as Markdown: whole, or as a comment on a pull request that folds points which ask for nothing."""

from __future__ import annotations

from collections.abc import Sequence

from bench.judge.folding import times
from bench.model.verdict import Report, Verdict
from bench.show.gate import (
    MEANING,
    change_text,
    commands,
    grouped,
    interval,
    one_lined,
    percent,
    point_labels,
    summary,
    worst_first,
)
from bench.show.labels import usual
from bench.show.tables import microseconds, short_name

# GitHub rejects a step summary above 1 MiB whole; the rest of a job's step may have written to the same file.
SUMMARY_LIMIT_BYTES = 1_000_000
LIMIT_BYTES = 60_000  # GitHub refuses a comment of more than 65536 characters
TIMED = ("verdict", "case", "contender", "clock", "before, us", "after, us", "change", "95 %", "reason")
COUNTED = ("verdict", "case", "contender", "changed figures", "reason")
LEAST_BYTES = 2_000  # room for a table of a few rows
QUIET = ("pass", "skipped")


def marker(title: str) -> str:
    """The first line of a comment, which tells it from others on the pull request. A later run replaces the comment."""
    return f"<!-- bench comment: {' '.join(title.replace('--', '-').split())} -->"


def comment(report: Report, title: str, picture: str | None = None) -> str:
    """The comment as Markdown. `picture` is the address of this report's figure `gate`. `title` names the gate."""
    report = one_lined(report)
    report.verdicts = worst_first(report.verdicts)
    rows = grouped(report.verdicts)
    loud = [item for item in rows if item[0].status not in QUIET]
    quiet = [item for item in rows if item[0].status in QUIET]
    head = [marker(title), f"### {cell(title)}: {MEANING[report.exit_code]}", "", cell(summary(report)), ""]
    if picture:
        head += [f"![change of each point, with its interval and the limit]({picture})", ""]
    head += _said(report)
    tail = _again(report, LIMIT_BYTES) + f"\n{cell(_sides(report))}\n"
    text = "\n".join(head) + "\n\n" + _table(report, loud, LIMIT_BYTES // 2)
    return text + _folded(report, quiet, LIMIT_BYTES - len((text + tail).encode())) + tail


def markdown(report: Report) -> str:
    """The report with all of its points, for a step summary. It is cut, with a note, if it would be too long."""
    head = "\n".join([f"**{cell(summary(report))}**", "", *_said(report)]) + "\n\n"
    tail = _again(report, SUMMARY_LIMIT_BYTES)
    room = SUMMARY_LIMIT_BYTES - len((head + tail).encode())
    return head + _table(report, grouped(report.verdicts), room) + tail


def _said(report: Report) -> list[str]:
    return [f"- refused: {cell(reason)}" for reason in report.refusals] + [f"- {cell(note)}" for note in report.notes]


def _table(report: Report, rows: Sequence[tuple[Verdict, int]], limit: int) -> str:
    """The rows with what tells their cases apart; what all of the report's have stands below."""
    if not rows:
        return ""
    counted = report.counted
    names = COUNTED if counted else TIMED
    cases = [item.case for item in report.verdicts]
    labels = point_labels([item for item, _ in rows], report.verdicts)
    cells = [_counted(item) if counted else _timed(item) for item, _ in rows]
    lines = [
        _row(times(item.status, more), label, short_name(item.contender), *own)
        for (item, more), label, own in zip(rows, labels, cells, strict=True)
    ]
    head = f"{_row(*names)}\n|{' --- |' * len(names)}\n"
    common = usual(cases).removeprefix(";").strip()
    return within(head, lines, f"\n{cell(common)}\n" if common else "", limit)


def _row(*texts: str) -> str:
    return f"| {' | '.join(map(cell, texts))} |"


def _timed(item: Verdict) -> list[str]:
    times_us = [microseconds(item.before_us), microseconds(item.after_us)]
    return [item.clock, *times_us, percent(item.ratio), interval(item), item.reason]


def _counted(item: Verdict) -> list[str]:
    return [", ".join(map(change_text, item.changes)) or "-", item.reason]


def _folded(report: Report, rows: Sequence[tuple[Verdict, int]], limit: int) -> str:
    """The points that ask for nothing; their number alone where there is no room for them."""
    counts = {status: sum(1 + more for item, more in rows if item.status == status) for status in QUIET}
    title = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    if not rows or limit < LEAST_BYTES:
        return f"\n{title}\n" if rows else ""
    opening, closing = f"\n<details><summary>{title}</summary>\n\n", "\n</details>\n"
    return opening + _table(report, rows, limit - len(opening) - len(closing)) + closing


def _again(report: Report, limit: int) -> str:
    """The commands that show flagged points again, if they leave room for the points within `limit` bytes."""
    lines = "\n".join(dict.fromkeys(commands(report)))
    if not lines or len(lines.encode()) > limit // 4:
        return ""
    return f"\n<details><summary>To see a flagged point again</summary>\n\n```sh\n{lines}\n```\n\n</details>\n"


def _sides(report: Report) -> str:
    machine = report.identity.get("gpu") or ("counted, no GPU" if report.counted else "no GPU")
    return f"{report.after.label} against {report.before.label}; {machine}; {report.started_utc[:10]}"


def within(head: str, rows: Sequence[str], tail: str, limit: int) -> str:
    """As many rows as fit into `limit` bytes, the worst first, and the whole tail."""
    text, left = head, len(rows)
    note = "\n{} more points are not shown: the summary would be too long.\n"
    room = limit - len(head.encode()) - len(note.encode()) - 20
    tail = tail if len(tail.encode()) < room // 2 else ""
    room -= len(tail.encode())
    for row in rows:
        size = len(row.encode()) + 1
        if size > room:
            break
        text, room, left = text + row + "\n", room - size, left - 1
    return text + (note.format(left) if left else "") + tail


def cell(text: str) -> str:
    """Text that stays in its table cell and is not read as markup."""
    for character in "\\|<>*_`[":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())
