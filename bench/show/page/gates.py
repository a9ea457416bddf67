"""Reports of the gate as plain values for the browser: every verdict, with the rounds behind it."""

from __future__ import annotations

from statistics import median
from typing import Any

from bench.model.pairs import PairPoint, PairRound, PairRun
from bench.model.verdict import Exit, Report, Verdict
from bench.show.gate import MEANING, change_text, interval, percent, point_labels, reproduce, summary, worst_first
from bench.show.labels import usual
from bench.show.page.runs import CLOCKS, op_words

Key = tuple[object, str, str, float]


def report(name: str, found: Report, pairs: PairRun | None) -> dict[str, Any]:
    """One report, the worst verdict first. With a record of pairs, it has the rounds of both sides."""
    verdicts = worst_first(found.verdicts)
    cases = [item.case for item in verdicts]
    sampled = {_key(point.planned, point.extra_share): point for point in pairs.points} if pairs else {}
    return {
        "name": name,
        "gpu": str(found.identity.get("gpu") or "no GPU"),
        "meaning": MEANING[Exit(found.exit_code)],
        "summary": summary(found),
        "sides": [found.before.label, found.after.label],
        "counted": found.use == "work",
        "usual": usual(cases).removeprefix("; "),
        "refusals": found.refusals,
        "notes": found.notes,
        "verdicts": [
            _verdict(found, item, label, sampled.get(_key(item, item.extra_share)))
            for item, label in zip(verdicts, point_labels(verdicts, verdicts), strict=True)
        ],
    }


def _key(item: Any, extra_share: float) -> Key:
    return (item.case, item.contender, item.clock, extra_share)


def _verdict(found: Report, item: Verdict, label: str, sampled: PairPoint | None) -> dict[str, Any]:
    fields = {
        "label": label,
        "op": op_words(item.case.op),
        "case": item.case.key,
        "contender": item.contender,
        "clock": item.clock,
        "clock_words": CLOCKS[item.clock],
        "status": item.status,
        "reason": item.reason,
        "blocks": item.blocks,
        "confirmed": item.confirmed,
        "before": item.before_us,
        "after": item.after_us,
        "ratio": item.ratio,
        "change": percent(item.ratio),
        "interval": interval(item),
        "low": item.low,
        "detectable": item.detectable,
        "sees": percent(item.detectable),
        "counts": [change_text(change) for change in item.changes],
        "rounds": [_round(each) for each in sampled.rounds] if sampled else None,
        "again": reproduce(found, item),
    }
    return {name: value for name, value in fields.items() if value is not None and value != []}


def _round(item: PairRound) -> list[Any]:
    """[stage, pair of processes, first side, A's median, B's median], us."""
    return [item.stage, item.process, item.first, median(item.a_blocks_us), median(item.b_blocks_us)]
