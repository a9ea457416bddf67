"""The figures of each point in a results file: time, interval, bound, and its ratio to ours. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any, NamedTuple

from bench.judge.estimate import Estimate, Floor, anchor_value, floor, point_estimate
from bench.model.case import OPS, PHASES, Case, Op
from bench.model.records import Point, Results
from bench.model.registry import names, without_version

OURS = "csgmv_embed-vocab_major"
OWN = "csgmv_embed"  # what the names of this repository's contenders begin with
BASE = "base"  # the product without LoRA: no competitor, but what LoRA costs is told by it

Wanted = Callable[[Point], bool]


@dataclass(frozen=True)
class Figure:
    """One point. Times are in us: geometric means of the rounds' medians, with Student's interval of 95 %.

    to_ours   its time over ours on the same case and clock; None if one of the two is missing
    to_floor  its time over its bound; below 1 the bound does not hold for this way of running, see `below_bound`
    """

    point: Point
    time_us: float | None
    low_us: float | None
    high_us: float | None
    floor: Floor | None
    to_ours: float | None = None
    subject: str = OURS  # whose time `to_ours` is told by: ours, or who was named in its place

    @property
    def case(self) -> Case:
        return self.point.case

    @property
    def contender(self) -> str:
        return self.point.contender

    @property
    def to_floor(self) -> float | None:
        return self.time_us / self.floor.value_us if self.time_us is not None and self.floor else None

    def as_fields(self) -> dict[str, Any]:
        """The fields for JSON or CSV; None where there is no value."""
        return {
            "case": self.case.key,
            "contender": self.contender,
            "clock": self.point.clock,
            "status": self.point.status,
            "reason": self.point.reason,
            "median_us": self.time_us,
            "low_us": self.low_us,
            "high_us": self.high_us,
            "floor_us": self.floor.value_us if self.floor else None,
            "floor": self.floor.kind if self.floor else None,
            "floor_words": floor_words(self.floor, self.point.clock) if self.floor else None,
            "to_floor": self.to_floor,
            "to_ours": self.to_ours,
        }


def floor_words(found: Floor, clock: str) -> str:
    """What the bound is, in the words of tables."""
    empty = "empty node" if clock == "graph" else "empty call"
    return empty if found.kind == "launch" else "bytes"


def with_lora(op: Op, to_base: float) -> float:
    """The time with LoRA over that of the base product. A layer's own time includes the product; other ops' do not."""
    return to_base if op == "layer" else 1 + to_base


@dataclass(frozen=True)
class Standing:
    """One case on one clock: ours, the fastest competitor, and every contender's figure by name."""

    case: Case
    clock: str
    by_name: dict[str, Figure]
    subject: str = OURS  # as of its figures

    @property
    def ours(self) -> Figure | None:
        return self.by_name.get(self.subject)

    @property
    def best_peer(self) -> Figure | None:
        """The fastest competitor that is not of this repository. The base product without LoRA is no competitor."""
        timed = [
            item
            for name, item in self.by_name.items()
            if not self._is_own(name) and name != BASE and item.time_us is not None
        ]
        return min(timed, key=lambda item: item.time_us or 0.0, default=None)

    def _is_own(self, name: str) -> bool:
        return name.startswith(OWN) if self.subject.startswith(OWN) else name == self.subject

    @property
    def ratio(self) -> float | None:
        """The best peer's time over ours. Above 1 ours is faster."""
        return self.best_peer.to_ours if self.best_peer else None

    @property
    def cost_of_lora(self) -> float | None:
        """The time with LoRA over that of the product without."""
        base, ours = self.by_name.get(BASE), self.ours
        if base is None or ours is None or base.time_us is None or ours.time_us is None:
            return None
        return with_lora(self.case.op, ours.time_us / base.time_us)

    @property
    def floor(self) -> Floor | None:
        figures = [self.ours] if self.ours else []
        return next((item.floor for item in [*figures, *self.by_name.values()] if item.floor), None)


SORTS: dict[str, Callable[[Standing], float]] = {
    # the worst first; what has no such figure last
    "ratio": lambda item: item.ratio if item.ratio is not None else float("inf"),
    "time": lambda item: -(item.ours.time_us or 0.0) if item.ours else 0.0,
    "floor": lambda item: -(item.ours.to_floor or 0.0) if item.ours else 0.0,
}


def figures(results: Results, wanted: Wanted = lambda point: True, subject: str = OURS) -> list[Figure]:
    """Figures of the wanted points, in the file's order.

    Ratios to the subject are kept even if the subject is not wanted.
    """
    bandwidth = {gpu: anchor_value(results, "copy_bandwidth", gpu) for gpu in {item.gpu for item in results.points}}
    ours = {(p.case, p.clock): found.value for p in results.points if p.contender == subject and (found := timed(p))}
    made = []
    for point in results.points:
        if wanted(point):
            found, own = timed(point), ours.get((point.case, point.clock))
            value, low, high = (found.value, found.low, found.high) if found else (None, None, None)
            to_ours = value / own if value is not None and own is not None else None
            made.append(Figure(point, value, low, high, floor(point, bandwidth[point.gpu]), to_ours, subject))
    return made


def timed(point: Point) -> Estimate | None:
    """The estimate of a point with the status ok; None for others."""
    return point_estimate(point) if point.status == "ok" else None


def standings(of: Iterable[Figure], *, sort: str | None = None, top: int | None = None) -> list[Standing]:
    """A standing for each case and clock, in the cases' order or with the worst first."""
    rows: dict[tuple[str, Case], dict[str, Figure]] = {}
    for item in sorted(of, key=lambda item: (item.point.clock, item.case, item.point.index)):
        rows.setdefault((item.point.clock, item.case), {})[item.contender] = item
    found = [
        Standing(case, clock, by_name, next(iter(by_name.values())).subject) for (clock, case), by_name in rows.items()
    ]
    if sort is not None:
        found.sort(key=SORTS[sort])
    return found[:top]


class Pivot(NamedTuple):
    """Times over ours by two axes: for each pair of values the geometric mean, the smallest and the largest.

    several: some pair has more than one case
    """

    down: list[Any]
    across: list[Any]
    cells: dict[tuple[Any, Any], tuple[float, float, float]]
    several: bool


Values = tuple[Any, ...]  # of the fields of an axis
PLACES: dict[Any, int] = {name: place for place, name in enumerate([*OPS, *PHASES, *names()])}
CONTENDER = "contender"  # an axis of a pivot that is none of a case: each competitor has its own column then


def pivoted(of: Iterable[Standing], axes: tuple[str, str]) -> Pivot:
    """The standings that have a ratio, by the first axis down and the second across.

    An axis is a field of the cases, several fields joined by +, or `contender`. With `contender`, each competitor's
    time over ours is given, in the order of the file. Without it, the best peer's.
    """
    found: dict[tuple[Values, Values], list[float]] = {}
    for item in of:
        for figure in _competitors(item) if CONTENDER in axes else filter(None, [item.best_peer]):
            if figure.to_ours is not None:
                pair = (_along(figure, axes[0]), _along(figure, axes[1]))
                found.setdefault(pair, []).append(figure.to_ours)
    down, across = (
        sorted({key[place] for key in found}, key=lambda values: [*map(_place, values)]) for place in (0, 1)
    )
    return Pivot(
        [*map(_said, down)],
        [*map(_said, across)],
        {(_said(a), _said(b)): (geometric_mean(some), min(some), max(some)) for (a, b), some in found.items()},
        any(len(some) > 1 for some in found.values()),
    )


def _competitors(item: Standing) -> list[Figure]:
    return [figure for name, figure in item.by_name.items() if name not in (item.subject, BASE)]


def _along(figure: Figure, axis: str) -> Values:
    names = axis.split("+")
    return tuple(figure.contender if name == CONTENDER else getattr(figure.case, name) for name in names)


def _place(value: Any) -> Any:
    """Where a value stands among those of its axis: ops, phases and contenders have one order everywhere."""
    return (PLACES[value], "") if value in PLACES else (PLACES.get(without_version(str(value)), len(PLACES)), value)


def _said(values: Values) -> Any:
    """A lone value as it is, several as their words."""
    return values[0] if len(values) == 1 else " ".join(map(str, values))
