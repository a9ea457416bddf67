"""Turns results into the numbers that a figure draws. Pure. Points that are not ok stay, marked, without a value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bench.judge.estimate import point_estimate
from bench.model.case import OPS, Case, Op
from bench.model.records import Point, Results


@dataclass(frozen=True)
class Mark:
    """One point of a series: its place on the axis and its time, or None and the status."""

    x: float
    value_us: float | None
    status: str


@dataclass(frozen=True)
class Series:
    """The points of one contender along an axis, in order."""

    contender: str
    marks: tuple[Mark, ...]


def shown_op(results: Results) -> Op:
    """The one op that a figure over cases shows: the lookup if there is one, else the first in the file."""
    found = {point.case.op for point in results.points}
    return next((op for op in OPS if op in found), "lookup")


WORDS: dict[Op, str] = {
    "lookup": "the embedding lookup (LoRA's A)",
    "layer": "the embedding layer with LoRA",
    "head": "LoRA on lm_head",
    "expand": "the expand of LoRA (B)",
    "shrink": "the shrink of LoRA (A)",
    "linear": "LoRA on linear layers",
}


def described(results: Results) -> str:
    """The op that is shown, for readers who do not know its name."""
    return WORDS[shown_op(results)]


def series(
    results: Results, wanted: Callable[[Case], bool], axis: Callable[[Case], float], contenders: Sequence[str]
) -> list[Series]:
    """The graph-clock points of the wanted cases, a series for each contender. Contenders in `skipped` are left out."""
    found = []
    for name in contenders:
        points = [p for p in results.points if p.clock == "graph" and p.contender == name and wanted(p.case)]
        marks = sorted((_mark(point, axis(point.case)) for point in points), key=lambda mark: mark.x)
        if any(mark.status != "skipped" for mark in marks):
            found.append(Series(name, tuple(marks)))
    return found


def _mark(point: Point, x: float) -> Mark:
    taken = point_estimate(point) if point.status == "ok" else None
    return Mark(x, taken.value if taken else None, point.status)


def drawn(marks: Iterable[Mark]) -> tuple[list[float], list[float]]:
    """The coordinates of the marks that have a value."""
    kept = [(mark.x, mark.value_us) for mark in marks if mark.value_us is not None]
    return [x for x, _ in kept], [value for _, value in kept]
