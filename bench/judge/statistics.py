"""The tests of the gate, on arrays: screen, confirm, the smallest slowdown that can be seen. Pure.

An observation is a log ratio of two round values, log(B / A): a slowdown is positive. Rows are points, columns
observations that are independent of each other. Every test is one of scipy, imported when first used: it
takes longer to import than the command line to answer.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import log1p, sqrt
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
Counts = np.ndarray[Any, np.dtype[np.int64]]
Outcome = Literal["slow", "fast", "inconclusive", "pass"]
CONFIDENCE = 0.95
# Observations that agree to this are equal: what is left is rounding, and a t statistic of it would be noise.
EQUAL = 1e-12
LEAST_TO_CLEAR = 3  # observations: with fewer there is none a process


def log_limit(percent: float) -> float:
    """A change in percent as a log ratio."""
    return log1p(percent / 100)


def flagged(observations: Array, limit_pct: float) -> Bools:
    """Screen: (points,) whether the mean differs from 0 by more than the limit, in either direction."""
    limit = log_limit(limit_pct)
    mean: Array = observations.mean(axis=1)
    return np.asarray(~((mean <= limit) & (mean >= -limit)))  # a NaN is not quiet


@dataclass(frozen=True)
class Tested:
    """One row of a family: its mean log ratio, its p value, the p value after Holm, and whether that rejects."""

    mean: float
    p: float
    p_holm: float
    rejected: bool


def within_floor(observations: Array, floor_pct: float, confidence: float) -> Bools:
    """(points,) whether both one-sided bounds of the mean lie within the floor.

    If so, more rounds will not make a change of it. Bounds of confidence 1 are infinite: nothing lies within them.
    """
    count = observations.shape[1]
    if confidence >= 1 or count < 2:
        return np.zeros(len(observations), dtype=np.bool_)
    from scipy import stats

    width = stats.t.ppf(confidence, count - 1) * observations.std(axis=1, ddof=1) / sqrt(count)
    return np.asarray(np.abs(observations.mean(axis=1)) + width < log_limit(floor_pct))


def is_look(count: int, wave: int, total: int) -> bool:
    """Whether points may be cleared at this point: after each wave except the last, from three observations on."""
    return LEAST_TO_CLEAR <= count < total and count % wave == 0


def confirm(observations: Array, *, alpha: float, slower: bool = True, cleared: int = 0) -> list[Tested]:
    """One-sided one-sample t test of each row against 0, with Holm over all rows and `cleared` more, whose p is 1.

    The rows must be fresh observations of points that other observations chose. Then the family-wise error is at most
    alpha, whatever chose them. Points that an early look cleared stay in the family, so looking can only remove
    rejections, never add one.
    """
    if not len(observations):
        return []
    from scipy import stats

    means = observations.mean(axis=1)
    p = _certain(means, slower)
    varied = np.ptp(observations, axis=1) > EQUAL
    if varied.any():
        side = "greater" if slower else "less"
        p[varied] = stats.ttest_1samp(observations[varied], 0.0, axis=1, alternative=side).pvalue
    return with_holm(means, p, alpha, cleared)


def outcome(slow: Tested, fast: Tested, floor_pct: float) -> Outcome:
    """The result of a confirmed point's two tests: a change must be significant and exceed the floor."""
    limit = log_limit(floor_pct)
    if slow.rejected and slow.mean > limit:
        return "slow"
    if fast.rejected and fast.mean < -limit:
        return "fast"
    return "inconclusive" if slow.mean > limit else "pass"


def compare_unpaired(before: list[Array], after: list[Array], *, alpha: float, slower: bool = True) -> list[Tested]:
    """One-sided Welch test of each pair of samples of log values, with Holm over all pairs. Sizes may differ."""
    if not before:
        return []
    from scipy import stats

    old, new = _moments(before), _moments(after)
    means = new[0] - old[0]
    p = _certain(means, slower)
    varied = (old[1] > EQUAL) | (new[1] > EQUAL)
    side = "greater" if slower else "less"
    sides = (*(part[varied] for part in new), *(part[varied] for part in old))
    p[varied] = stats.ttest_ind_from_stats(*sides, equal_var=False, alternative=side).pvalue
    p[(old[2] < 2) | (new[2] < 2)] = 1.0  # no spread to judge by
    return with_holm(means, p, alpha)


def _moments(samples: list[Array]) -> tuple[Array, Array, Array]:
    """(means, sds, sizes); the sd of a single value is given as 0."""
    sds = [item.std(ddof=1) if len(item) > 1 else 0.0 for item in samples]
    return np.array([item.mean() for item in samples]), np.array(sds), np.array([float(len(item)) for item in samples])


def _certain(means: Array, slower: bool) -> Array:
    """The p values of rows without any spread: what is seen is so."""
    return np.where((np.abs(means) > EQUAL) & ((means > 0) == slower), 0.0, 1.0)


def with_holm(means: Array, p: Array, alpha: float, cleared: int = 0) -> list[Tested]:
    """Means and p values of a family, with Holm's correction over it and `cleared` more, whose p is 1."""
    adjusted = holm(np.append(p, np.ones(cleared)))[: len(p)]
    columns = zip(means, p, adjusted, strict=True)
    return [Tested(float(mean), float(raw), float(both), bool(both <= alpha)) for mean, raw, both in columns]


def holm(p: Array) -> Array:
    """p values after Holm (1979).

    Rejecting those up to alpha errs in the whole family with probability at most alpha.
    """
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(adjusted, 1.0)


@contextmanager
def _nearly_equal_values() -> Iterator[None]:
    """Silences scipy's warning that a variance of nearly equal values is inexact: beside the other it is nothing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Precision loss occurred", RuntimeWarning)
        yield


def interval(observations: Array) -> tuple[float, float, float]:
    """(mean, low, high): Student's 95 % interval, infinite for a single observation."""
    mean = float(observations.mean())
    if len(observations) < 2 or np.ptp(observations) < EQUAL:
        width = 0.0 if len(observations) > 1 else np.inf
        return mean, mean - width, mean + width
    from scipy import stats

    with _nearly_equal_values():
        low, high = stats.ttest_1samp(observations, 0.0).confidence_interval(CONFIDENCE)
    return mean, float(low), float(high)


def welch(before: Array, after: Array) -> tuple[float, float, float, float]:
    """(difference of means, low, high, two-sided p) of two independent samples of log values; Welch, 95 %."""
    difference = float(after.mean() - before.mean())
    if len(before) < 2 or len(after) < 2:
        return difference, -np.inf, np.inf, 1.0
    if np.ptp(before) < EQUAL and np.ptp(after) < EQUAL:
        return difference, difference, difference, float(abs(difference) <= EQUAL)
    from scipy import stats

    with _nearly_equal_values():
        test = stats.ttest_ind(after, before, equal_var=False)
    low, high = test.confidence_interval(CONFIDENCE)
    return difference, float(low), float(high), float(test.pvalue)


@dataclass(frozen=True)
class Design:
    """What decides how small a slowdown is still found: independent observations, limits, error rates."""

    screen_observations: int
    confirm_observations: int
    screen_pct: float
    floor_pct: float
    alpha: float
    power: float


def detectable(sd: Array, design: Design) -> Array:
    """The smallest log slowdown found with the design's power, for points of this sd of an observation. inf for NaN.

    Three hurdles must be passed, and each is granted a third of the misses: the screen's limit and the floor, which the
    mean must exceed, and the t test, for which one true slowdown is assumed. The sd is taken as exact.
    """
    from scipy import special, stats

    each = 1 - (1 - design.power) / 3
    z = stats.norm.ppf(each)
    screen = log_limit(design.screen_pct) + z * sd / sqrt(design.screen_observations)
    floor = log_limit(design.floor_pct) + z * sd / sqrt(design.confirm_observations)
    freedom = design.confirm_observations - 1
    shift = special.nctdtrinc(freedom, 1 - each, stats.t.ppf(1 - design.alpha, freedom))  # of the t statistic
    least = np.maximum(np.maximum(screen, floor), shift / sqrt(design.confirm_observations) * sd)
    return np.where(np.isnan(least), np.inf, least)
