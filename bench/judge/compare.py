"""Two files side by side: the gate's numbers without its verdict. Pure."""

from __future__ import annotations

from math import exp

import msgspec
import numpy as np

from bench.judge import comparable, statistics, work
from bench.judge.comparable import Match, Shift
from bench.judge.times import TIMED, log_values, subject
from bench.model.records import Point, Results
from bench.model.verdict import Change, Subject


class Row(msgspec.Struct, frozen=True):
    """One point in both files. ratio is B over A. `note` says why there is no ratio, or what to keep in mind."""

    before: Point
    after: Point
    note: str | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None  # two-sided
    changes: list[Change] = []


class Comparison(msgspec.Struct, frozen=True):
    """`warnings`: reasons for which the gate would refuse to judge.

    `apart`: what besides the code differs, so that changes of times are not the code's alone.
    """

    before: Subject
    after: Subject
    warnings: list[str]
    notes: list[str]
    rows: list[Row]
    missing: int
    new: int
    apart: str | None = None


def compare_files(before: Results, after: Results, match: Match) -> Comparison:
    """Every matched point, the largest slowdown first."""
    rows: list[Row] = []
    notes = match.notes + comparable.environment_notes(before.env, after.env)
    for clock in TIMED:
        pairs = [pair for pair in match.both if pair[0].clock == clock]
        for gpus in comparable.gpu_pairs(pairs):
            shift = comparable.anchor_shift(before.anchors, after.anchors, clock, gpus)
            if shift is None:
                continue
            moved = ", ".join(f"{name} {100 * value:+.1f} %" for name, value in shift.by_anchor.items())
            notes.append(f"{clock} clock: corrected by {100 * shift.log_shift:+.2f} % ({moved})")
        shifts = [comparable.point_shift(before, after, *pair) for pair in pairs]
        rows += sorted(
            (_timed(*pair, shift) for pair, shift in zip(pairs, shifts, strict=True)),
            key=lambda row: -(row.ratio or 0.0),
        )
    rows += [_counted(old, new) for old, new in match.both if old.clock == "work"]
    timed = any(row.before.clock in TIMED for row in rows)
    warnings = comparable.environment_refusals(before.env, after.env) if timed else []
    warnings += comparable.instrument_refusals(before, after)
    return Comparison(
        subject(before.code, "A"),
        subject(after.code, "B"),
        warnings,
        notes,
        rows,
        len(match.missing),
        len(match.new),
        comparable.apart(before.env, after.env) if timed else None,
    )


def _timed(old: Point, new: Point, shift: Shift | None) -> Row:
    for name, point in (("A", old), ("B", new)):
        if point.status != "ok" or not point.rounds:
            return Row(old, new, note=f"{point.status} in {name}: {point.reason}")
    correction = shift.log_shift if shift else 0.0
    mean, low, high, p = statistics.welch(log_values(old), log_values(new) - correction)
    bounded = bool(np.isfinite(low))
    return Row(
        old,
        new,
        note=comparable.point_refusal(old, new),
        ratio=exp(mean),
        low=exp(low) if bounded else None,
        high=exp(high) if bounded else None,
        p=p if bounded else None,
    )


def _counted(old: Point, new: Point) -> Row:
    for name, point in (("A", old), ("B", new)):
        if point.status != "ok" or point.work is None:
            return Row(old, new, note=f"{point.status} in {name}: {point.reason}")
    assert old.work and new.work
    plain = not (old.work.compiled and new.work.compiled)
    changes = work.compare_work(work.figures(old.work, plain), work.figures(new.work, plain))
    return Row(old, new, note="compiled figures missing" if plain else None, changes=changes)
