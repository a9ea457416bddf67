"""Applies accepted slowdowns to a report: an accepted point passes and names who accepted it; stale entries are listed.

Pure.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import msgspec

from bench.model.accepted import Accepted
from bench.model.case_terms import fits as case_fits
from bench.model.registry import fits
from bench.model.verdict import Report, Verdict


def accept(report: Report, entries: Sequence[Accepted], today: datetime.date, *, whole: bool) -> None:
    """Let accepted slowdowns pass. `whole`: all points were judged, so an entry that matches none is stale."""
    report.verdicts = [_accepted(item, entries, today) for item in report.verdicts]
    for number, entry in enumerate(entries, 1):
        if said := _stale(report, entry, today, whole):
            report.notes.append(f"accepted change {number} ({entry.who}: {entry.contender}, {entry.case}): {said}")


def _accepted(item: Verdict, entries: Sequence[Accepted], today: datetime.date) -> Verdict:
    """The verdict, or a pass in its place. What no test has decided, as with a throttled GPU, is never accepted."""
    entry = next((one for one in entries if _names(one, item)), None)
    if entry is None or not _slower(item):
        return item
    if entry.until < today:
        return _but(item, f"{item.reason}; was accepted until {entry.until}")
    if item.ratio is None or item.ratio > 1 + entry.up_to_pct / 100:
        return _but(item, f"{item.reason}; up to {entry.up_to_pct:g} % is accepted")
    reason = f"accepted by {entry.who} up to {entry.up_to_pct:g} % until {entry.until}: {entry.why}"
    return msgspec.structs.replace(item, status="pass", reason=f"{reason} ({item.status}: {item.reason})")


def _names(entry: Accepted, item: Verdict) -> bool:
    return entry.clock == item.clock and fits(item.contender, entry.contender) and case_fits(item.case, entry.case)


def _slower(item: Verdict) -> bool:
    return item.status in ("slow", "inconclusive") and item.p is not None


def _but(item: Verdict, reason: str) -> Verdict:
    return msgspec.structs.replace(item, reason=reason)


def _stale(report: Report, entry: Accepted, today: datetime.date, whole: bool) -> str | None:
    """What is wrong with an entry, and what would be right."""
    named = [item for item in report.verdicts if _names(entry, item)]
    if not named and whole:
        return f"names no point that was judged; expected {_known(report, entry)}, or the entry taken out"
    if entry.until < today:
        return f"its last day was {entry.until}; expected a later `until`, or the entry taken out"
    if named and all(item.status in ("pass", "fast") and "accepted by" not in item.reason for item in named):
        return "none of its points is slower: the entry can be taken out"
    return None


def _known(report: Report, entry: Accepted) -> str:
    """What is judged where the entry differs: its contender or its clock first, else a case."""
    names = list(dict.fromkeys(item.contender for item in report.verdicts))
    if not any(fits(name, entry.contender) for name in names):
        return f"a contender of {', '.join(names) or 'a report that has any'}"
    of_contender = [item for item in report.verdicts if fits(item.contender, entry.contender)]
    clocks = list(dict.fromkeys(item.clock for item in of_contender))
    if entry.clock not in clocks:
        return f"a clock of {', '.join(clocks)}"
    return f"a case such as {of_contender[0].case.key}"
