"""Samples to estimates, by hand and against scipy."""

from __future__ import annotations

from math import exp, log

import pytest
import scipy.stats

from bench.judge.estimate import estimate, floor, log_sd, point_estimate, process_spread
from bench.model.case import Case
from bench.model.records import Point, Round

pytestmark = pytest.mark.numeric
CASE = Case("decode", 1, 1, 16)


def point(*rounds: Round, **fields) -> Point:
    return Point(CASE, "c", "graph", 0, "ok", rounds=list(rounds), **fields)


def test_a_rounds_value_is_its_median_block_and_rounds_are_averaged_on_the_log_scale():
    found = point_estimate(point(Round(0, 1, [1.0, 2.0, 90.0]), Round(0, 2, [8.0, 8.0, 1.0])))
    assert found is not None
    assert found.value == pytest.approx(4.0)
    assert found.rounds == 2


def test_the_interval_is_students_on_the_log_scale():
    values = [1.0, 1.1, 1.3]
    found = estimate(values)
    logs = [log(value) for value in values]
    low, high = scipy.stats.t.interval(0.95, 2, loc=sum(logs) / 3, scale=scipy.stats.sem(logs))
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(exp(low)), pytest.approx(exp(high)))


def test_one_round_has_no_interval_and_none_no_estimate():
    assert estimate([2.0]).low is None
    assert estimate([]) is None
    assert point_estimate(point()) is None
    assert log_sd([1.0]) is None


def test_host_times_are_separate():
    eager = point(Round(0, 1, [10.0], [7.0]))
    assert point_estimate(eager).value == pytest.approx(10.0)
    assert point_estimate(eager, host=True).value == pytest.approx(7.0)


def test_the_floor_is_the_larger_of_launch_and_bytes():
    assert floor(point(floor_us=[1.0, 3.0, 2.0], minimum_bytes=1000), 1000.0) == floor(point(floor_us=[2.0]), None)
    found = floor(point(floor_us=[1.0], minimum_bytes=5000), 1000.0)
    assert (found.value_us, found.kind) == (5.0, "bytes")
    assert floor(point(minimum_bytes=5000), 1000.0) is None


def test_process_spread_ignores_variation_inside_a_process():
    inside = point(Round(0, 1, [1.0]), Round(0, 2, [4.0]), Round(1, 3, [2.0]), Round(1, 4, [2.0]))
    assert process_spread(inside) == pytest.approx(0.0)
    between = point(Round(0, 1, [1.0]), Round(1, 2, [exp(0.02)]))
    assert process_spread(between) == pytest.approx(0.02 / 2**0.5)
    assert process_spread(point(Round(0, 1, [1.0]))) is None
