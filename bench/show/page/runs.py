"""Results files as plain values for the browser: every point, its rounds and the command that measures it again."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from bench.judge.estimate import point_estimate
from bench.judge.figures import BASE, Figure, figures
from bench.judge.work import figures as work_figures
from bench.model.case import Case
from bench.model.records import Point, Results, Round
from bench.show import again
from bench.show.labels import row_labels, usual
from bench.show.page.content import head
from bench.show.tables import kind_of

# The clocks in words; what is chosen first comes first.
CLOCKS = {
    "graph": "CUDA graph",
    "eager": "called from Python",
    "prepare": "planning a batch on the host",
    "work": "counted work of one launch, no time",
}
_OPS = {
    "lookup": "embedding lookup",
    "layer": "embedding layer",
    "head": "lm_head",
    "linear": "LoRA of a linear layer",
    "shrink": "shrink of a linear layer",
    "expand": "expand",
}
# What a chart can show of a timed point: in words, its unit in words, its unit at an axis.
TIMED = {
    "us": ("time of one call", "us", "us"),
    "host_us": ("host time to enqueue one call", "us", "us"),
    "to_ours": ("its time over ours", "above 1 ours is faster", "times ours"),
    "to_floor": ("its time over the bound", "1 is the least possible", "times the bound"),
}


def op_words(op: str) -> str:
    """An op in words, if it has any besides its name."""
    return _OPS.get(op, op)


def kind_title(case: Case, clock: str) -> str:
    """The title of a chart: an op, a phase and a clock, in words."""
    return f"{op_words(case.op)}, {case.phase}: {CLOCKS[clock]}"


def run(name: str, results: Results) -> dict[str, Any]:
    """One file.

    Times are in us. A round is [process, layout seed, median, least and largest block, SM MHz, throttle].
    """
    found = sorted(figures(results), key=lambda item: (item.case, item.point.index))
    labels = _labels([figure.point for figure in found])
    return {
        **head(name, results),
        "usual": _usual([figure.point for figure in found]),
        "points": [_point(results, figure, labels[figure.point.index]) for figure in found],
    }


def _kind(point: Point) -> str:
    return f"{kind_of(point.case)}|{point.clock}"


def _by_kind(points: Sequence[Point]) -> dict[str, list[Point]]:
    kinds: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda item: item.case):
        kinds.setdefault(_kind(point), []).append(point)
    return kinds


def _labels(points: Sequence[Point]) -> dict[int, str]:
    """Index of a point -> its case's label among the cases of its kind."""
    found: dict[int, str] = {}
    for of_kind in _by_kind(points).values():
        cases = [point.case for point in of_kind]
        found |= {point.index: label for point, label in zip(of_kind, row_labels(cases), strict=True)}
    return found


def _usual(points: Sequence[Point]) -> dict[str, str]:
    return {kind: usual([point.case for point in of]).removeprefix("; ") for kind, of in _by_kind(points).items()}


def _point(results: Results, figure: Figure, label: str) -> dict[str, Any]:
    point = figure.point
    host = point_estimate(point, host=True) if point.status == "ok" else None
    competes = point.contender != BASE  # the product without LoRA does not
    fields = {
        "kind": _kind(point),
        "title": kind_title(point.case, point.clock),
        "label": label,
        "case": point.case.key,
        "op": point.case.op,
        "clock": point.clock,
        "contender": point.contender,
        "status": point.status,
        "reason": point.reason,
        "us": figure.time_us,
        "low": figure.low_us,
        "high": figure.high_us,
        "host_us": host.value if host else None,
        "floor": figure.floor.value_us if figure.floor else None,
        "floor_kind": floor_kind(figure, point.clock),
        "to_floor": figure.to_floor,
        "to_ours": figure.to_ours if competes else None,
        "counts": dict(work_figures(point.work, not point.work.compiled)) if point.work else None,
        "check": _check(point),
        "cache": point.cache.achieved if point.cache else None,
        "nodes": point.nodes,
        "rounds": rounds(point.rounds),
        "again": again.sweep(results, point),
    }
    return {name: value for name, value in fields.items() if value not in (None, [])}


def floor_kind(figure: Figure, clock: str) -> str | None:
    """The kind of a point's bound, in words."""
    if figure.floor is None:
        return None
    if figure.floor.kind == "bytes":
        return "its least bytes over the bandwidth of a copy"
    return "an empty node of a graph" if clock == "graph" else "an empty call"


def rounds(of: Sequence[Round]) -> list[list[Any]]:
    """See `run`."""
    return [
        [
            item.process,
            item.layout_seed,
            _short(median(item.blocks_us)),
            _short(min(item.blocks_us)),
            _short(max(item.blocks_us)),
            item.sm_mhz,
            ", ".join(item.throttle) or None,
        ]
        for item in of
    ]


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _check(point: Point) -> str | None:
    if point.check is None:
        return None
    error = "unknown" if point.check.max_error is None else f"{point.check.max_error:.2g}"
    outcome = "right" if point.check.passed else "WRONG"
    return f"{outcome}: largest error {error} of the largest value, {point.check.tolerance:.2g} allowed"
