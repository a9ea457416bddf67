"""How much processes of one load and figure differ, and the interval of a change between two files. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from statistics import mean

from bench.judge.statistics import CONFIDENCE, EQUAL


@dataclass
class Spread:
    """How much processes of one load and figure differ: pooled sd of a log, and its degrees of freedom."""

    squares: float = 0.0
    free: int = 0

    def add(self, values: Sequence[float]) -> None:
        """Add another group of processes, which differ only by chance."""
        middle = mean(values)
        self.squares += sum((value - middle) ** 2 for value in values)
        self.free += len(values) - 1

    def error(self, before: int, after: int) -> float | None:
        """The standard error of a difference of two means; None if it is unknown."""
        return sqrt(self.squares / self.free * (1 / before + 1 / after)) if self.free else None


def interval(change: float, error: float | None, free: int) -> tuple[float, float]:
    """The 95 % interval of a log change; infinite if the spread of processes is unknown."""
    if error is None:
        return -inf, inf
    if error < EQUAL:
        return change, change
    from scipy import stats

    width = float(stats.t.ppf(0.5 + CONFIDENCE / 2, free)) * error
    return change - width, change + width
