"""Finds where a series changed level. Pure.

Times: PELT on log values, in units of their robust spread, proposes places. A t test over all levels keeps those that
are more than the noise of a short series (docs/explanation/history.md). Counts are exact, so every other value is a
change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log, sqrt
from typing import Any

import numpy as np

from bench.judge.estimate import CONFIDENCE
from bench.judge.series import TIME, Series
from bench.judge.statistics import EQUAL, log_limit
from bench.judge.work import MORE_IS_BETTER
from bench.model.config import History
from bench.model.history import Commit

Array = np.ndarray[Any, np.dtype[np.float64]]
MIN_LEVEL = 2  # commits of a level: one alone is an outlier as well as a change
GAUSSIAN_MAD = 1.4826  # sd of a normal distribution over its median absolute deviation


@dataclass(frozen=True)
class Change:
    """A change of level between two measured neighbours.

    ratio      new level over old; low and high its 95 % interval, None where the figure is exact
    suspects   commits of the line after `before`, up to and with `commit`: more than one if some were not measured
    """

    series: Series
    before: Commit
    commit: Commit
    after: Commit | None  # the next measured commit
    ratio: float
    low: float | None
    high: float | None
    worse: bool
    suspects: tuple[Commit, ...]
    old: float
    new: float


def changes(series: Series, line: Sequence[Commit], settings: History) -> list[Change]:
    """The changes of one series, in order."""
    measured = [item for item in series.observations if item.value is not None]
    values = np.array([item.value.value for item in measured if item.value is not None])
    if series.figure != TIME:
        places = [index for index in range(1, len(values)) if values[index] != values[index - 1]]
        return [_exact(series, line, values, index) for index in places]
    logs = np.log(values)
    places = change_points(logs, settings)
    bounds = [0, *places, len(logs)]
    found = []
    for number, index in enumerate(places, 1):
        old, new = logs[bounds[number - 1] : index], logs[index : bounds[number + 1]]
        difference, half = _difference(logs, bounds, number)
        found.append(
            _change(
                series, line, index, exp(difference), exp(difference - half), exp(difference + half),
                exp(float(old.mean())), exp(float(new.mean())),
            )
        )  # fmt: skip
    return found


def change_points(logs: Array, settings: History) -> list[int]:
    """Indices at which a new level begins. There are none if the values are too few for two levels."""
    if len(logs) < 2 * MIN_LEVEL:
        return []
    places = _kept(logs, _proposed(logs, settings.penalty), settings.alpha)
    limit = log_limit(settings.least_pct)
    while places:  # a step too small to name joins its neighbours' levels, the smallest first
        bounds = [0, *places, len(logs)]
        steps = [abs(_difference(logs, bounds, number)[0]) for number in range(1, len(places) + 1)]
        smallest = int(np.argmin(steps))
        if steps[smallest] > limit:
            break
        del places[smallest]
    return places


def robust_spread(logs: Array) -> float:
    """The sd of one value, from differences of neighbours. Few of these are steps, and those count as outliers."""
    from scipy.stats import median_abs_deviation

    return float(median_abs_deviation(np.diff(logs))) * GAUSSIAN_MAD / sqrt(2)


def _proposed(logs: Array, penalty: float) -> list[int]:
    import ruptures

    spread = max(robust_spread(logs), EQUAL)
    search = ruptures.Pelt(model="l2", min_size=MIN_LEVEL, jump=1).fit((logs / spread).reshape(-1, 1))
    return [int(index) for index in search.predict(pen=penalty * log(len(logs)))[:-1]]


def _kept(logs: Array, places: list[int], alpha: float) -> list[int]:
    """Without those whose t test, over the n - 1 places where a step could be, does not reject; the weakest goes first.

    The spread of a short series is known badly, and differences of neighbours know it worse than the levels do.
    """
    from scipy.stats import t

    places = list(places)
    while places:
        bounds = [0, *places, len(logs)]
        freedom = len(logs) - len(places) - 1
        scores = []
        for number in range(1, len(places) + 1):
            difference, error = _step(logs, bounds, number)
            scores.append(abs(difference) / max(error, EQUAL))
        weakest = int(np.argmin(scores))
        if 2 * t.sf(scores[weakest], freedom) <= alpha / (len(logs) - 1):
            break
        del places[weakest]
    return places


def _step(logs: Array, bounds: Sequence[int], number: int) -> tuple[float, float]:
    """(difference, standard error) of the levels around change `number`; the residual spread is that of all levels."""
    levels = [logs[start:end] for start, end in pairwise(bounds)]
    squares = sum(float(((level - level.mean()) ** 2).sum()) for level in levels)
    spread = sqrt(squares / (len(logs) - len(levels)))
    old, new = levels[number - 1], levels[number]
    return float(new.mean() - old.mean()), spread * sqrt(1 / len(old) + 1 / len(new))


def _difference(logs: Array, bounds: Sequence[int], number: int) -> tuple[float, float]:
    """(log step, half its 95 % interval)."""
    from scipy.stats import t

    difference, error = _step(logs, bounds, number)
    return difference, float(t.ppf(0.5 + CONFIDENCE / 2, len(logs) - len(bounds) + 1)) * error


def _exact(series: Series, line: Sequence[Commit], values: Array, index: int) -> Change:
    old, new = float(values[index - 1]), float(values[index])
    return _change(series, line, index, new / old if old else float("inf"), None, None, old, new)


def _change(
    series: Series,
    line: Sequence[Commit],
    index: int,
    ratio: float,
    low: float | None,
    high: float | None,
    old: float,
    new: float,
) -> Change:
    measured = series.measured
    before, commit = measured[index - 1].commit, measured[index].commit
    after = measured[index + 1].commit if index + 1 < len(measured) else None
    worse = new < old if series.figure in MORE_IS_BETTER else new > old
    return Change(series, before, commit, after, ratio, low, high, worse, _between(line, before, commit), old, new)


def _between(line: Sequence[Commit], before: Commit, commit: Commit) -> tuple[Commit, ...]:
    shas = [item.sha for item in line]
    found = tuple(line[shas.index(before.sha) + 1 : shas.index(commit.sha) + 1]) if before.sha in shas else ()
    if len(found) == 1 and commit.parent not in (None, before.sha):  # the line knows only what was measured
        return Commit(str(commit.parent)), commit
    return found or (commit,)
