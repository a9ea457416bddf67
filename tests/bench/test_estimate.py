"""Samples -> estimates, against values computed by hand and by scipy."""

from __future__ import annotations

from math import exp, log, sqrt

import numpy as np
import pytest
from scipy import stats

from bench.case import Case
from bench.estimate import (
    Floor,
    anchor_value,
    estimate,
    floor,
    log_sd,
    point_estimate,
    process_spread,
    round_values,
)
from bench.results import Anchor, Code, Point, Results, Round, Run, Schema, Selection

CASE = Case("decode", 8, 1, 16)


def point(*rounds: Round, floors: list[float] | None = None, minimum_bytes: int | None = None) -> Point:
    return Point(CASE, "x", "graph", 0, "ok", rounds=list(rounds), floor_us=floors or [], minimum_bytes=minimum_bytes)


def results(*anchors: Anchor) -> Results:
    run = Run("id", "sweep", Selection("p"), "2025-01-01T00:00:00+00:00", 0.0, [], 1, "", "0")
    return Results(Schema(), run, Code(None, None, None, None, None, None, "", ""), anchors=list(anchors))


def test_a_round_is_the_median_of_its_blocks() -> None:
    rounds = [Round(0, 1, [3.0, 100.0, 1.0], [9.0, 7.0]), Round(0, 2, [4.0, 2.0]), Round(1, 3, [])]
    assert round_values(rounds) == [3.0, 3.0]
    assert round_values(rounds, host=True) == [8.0]


def test_the_interval_is_students_on_the_log_scale() -> None:
    values = [2.0, 2.2, 1.9]
    logs = np.log(values)
    low, high = stats.t.interval(0.95, df=2, loc=logs.mean(), scale=stats.sem(logs))
    found = estimate(values)
    assert found is not None
    assert found.value == pytest.approx((2.0 * 2.2 * 1.9) ** (1 / 3))
    assert (found.low, found.high) == (pytest.approx(exp(low)), pytest.approx(exp(high)))
    assert found.rounds == 3


def test_two_rounds_by_hand() -> None:
    found = estimate([1.0, 4.0])
    assert found is not None
    # mean log = log 2; sd = log 4 / sqrt 2; sem = log 4 / 2; t(0.975, 1) = 12.7062
    assert found.value == pytest.approx(2.0)
    assert found.high == pytest.approx(2.0 * exp(12.7062 * log(4) / 2), rel=1e-4)
    assert found.low == pytest.approx(2.0 / exp(12.7062 * log(4) / 2), rel=1e-4)


def test_one_round_has_a_value_without_an_interval_and_none_has_nothing() -> None:
    found = estimate([3.0])
    assert found is not None
    assert (found.value, found.low, found.high, found.rounds) == (pytest.approx(3.0), None, None, 1)
    assert estimate([]) is None
    assert point_estimate(point()) is None
    assert point_estimate(point(Round(0, 1, [3.0])), host=True) is None


def test_a_points_estimate_is_over_its_rounds() -> None:
    found = point_estimate(point(Round(0, 1, [1.0, 2.0, 9.0]), Round(0, 2, [8.0])))
    assert found is not None and found.value == pytest.approx(4.0) and found.rounds == 2


@pytest.mark.parametrize(
    ("minimum_bytes", "bandwidth", "expected"),
    [
        (1000, 100.0, Floor(10.0, "bytes")),
        (100, 100.0, Floor(2.0, "launch")),
        (200, 100.0, Floor(2.0, "launch")),  # equal: the launch
        (None, 100.0, Floor(2.0, "launch")),
        (1000, None, Floor(2.0, "launch")),
    ],
)
def test_the_floor_is_the_larger_of_launch_and_bytes(
    minimum_bytes: int | None, bandwidth: float | None, expected: Floor
) -> None:
    assert floor(point(floors=[9.0, 2.0, 1.0], minimum_bytes=minimum_bytes), bandwidth) == expected


def test_without_a_launch_floor_there_is_no_floor() -> None:
    assert floor(point(minimum_bytes=1000), 100.0) is None


def test_an_anchor_is_the_median_of_its_processes() -> None:
    found = results(Anchor("a", "us", [1.0, 9.0, 2.0]), Anchor("b", "us", []))
    assert anchor_value(found, "a") == 2.0
    assert anchor_value(found, "b") is None
    assert anchor_value(found, "c") is None


def test_the_spread_of_logs() -> None:
    assert log_sd([1.0, 4.0]) == pytest.approx(log(4) / sqrt(2))
    assert log_sd([1.0, 2.0, 8.0]) == pytest.approx(float(np.std(np.log([1, 2, 8]), ddof=1)))
    assert log_sd([5.0]) is None
    assert log_sd([]) is None


def test_the_spread_between_processes_is_of_their_geometric_means() -> None:
    rounds = [Round(0, 1, [1.0]), Round(1, 3, [8.0]), Round(0, 2, [4.0]), Round(1, 4, [8.0, 8.0])]
    assert process_spread(point(*rounds)) == pytest.approx(log(8 / 2) / sqrt(2))
    assert process_spread(point(rounds[0], rounds[2])) is None
    assert process_spread(point()) is None
