"""Change points: error rates by simulation, exact counts, sizes and neighbours, series that must not be crossed."""

from __future__ import annotations

from math import exp, log

import msgspec
import numpy as np
import pytest

from bench.judge.changes import Change, change_points, changes, robust_spread
from bench.judge.estimate import Estimate
from bench.judge.series import Conditions, Observation, Series, eras, order_of
from bench.model.case import Case
from bench.model.history import Commit
from docs.experiments.simulate_history import false_changes, found_steps
from tests.support.history import HISTORY, OURS, commit, entry, noisy, sha

pytestmark = pytest.mark.numeric
LINE = [commit(number) for number in range(40)]


def series(values: list[float | None], figure: str = "time", clock: str = "graph") -> Series:
    seen = tuple(
        Observation(LINE[n], Estimate(v, None, None, 1) if v is not None else None, "ok" if v is not None else "error")
        for n, v in enumerate(values)
    )
    return Series(Case("decode", 32, 1, 64), OURS, clock, figure, Conditions("v1", "key", 1), seen)  # type: ignore[arg-type]


def found(values: list[float | None], **options: str) -> list[Change]:
    return changes(series(values, **options), LINE, HISTORY)


def timed(levels: list[float], seed: int = 0, sd: float = 0.01) -> list[float | None]:
    return [exp(value) for value in noisy(levels, sd, seed)]


# --- error rates ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("commits", "series"), [(8, 600), (12, 600), (40, 200)])
def test_null_series_hardly_ever_have_a_change(commits: int, series: int) -> None:
    assert false_changes("normal", commits, series, HISTORY, seed=3).hits / series <= 0.005


def test_without_the_t_test_short_series_would_be_full_of_changes() -> None:
    """What the second look is for: the penalty alone errs in several percent of short series."""
    lenient = msgspec.structs.replace(HISTORY, alpha=0.499)
    assert false_changes("normal", 8, 300, lenient, seed=3).hits > 10


@pytest.mark.parametrize("commits", [20, 40])
def test_a_5_percent_step_at_1_percent_noise_is_found_within_one_commit_after_three(commits: int) -> None:
    tally = found_steps("normal", commits, 3, 200, HISTORY, seed=3)
    assert tally.hits / tally.series >= 0.95


# --- one series ----------------------------------------------------------------------------------------------------


def test_a_change_has_its_commit_size_interval_and_neighbours() -> None:
    (change,) = found(timed([2.0] * 8 + [2.2] * 6))
    assert (change.before, change.commit, change.after) == (LINE[7], LINE[8], LINE[9])
    assert change.suspects == (LINE[8],)
    assert change.worse and change.low is not None and change.high is not None
    assert change.low < 1.1 < change.high and change.high - change.low < 0.04
    assert (change.old, change.new) == (pytest.approx(2.0, rel=0.01), pytest.approx(2.2, rel=0.01))


def test_a_gain_is_a_change_that_is_not_worse() -> None:
    (change,) = found(timed([2.0] * 8 + [1.8] * 6))
    assert not change.worse and change.ratio == pytest.approx(0.9, rel=0.02)


def test_several_levels_are_told_apart() -> None:
    places = [change.commit for change in found(timed([2.0] * 7 + [2.3] * 7 + [1.9] * 8))]
    assert places == [LINE[7], LINE[14]]


def test_one_odd_commit_is_no_change_of_level() -> None:
    values = timed([2.0] * 14)
    values[6] = 2.4
    assert found(values) == []


def test_a_step_below_the_least_is_not_named_however_certain() -> None:
    values: list[float | None] = [2.0 + 1e-5 * (n % 3) for n in range(10)]
    values += [2.0 * 1.006 + 1e-5 * (n % 3) for n in range(10)]
    assert found(values) == []
    strict = msgspec.structs.replace(HISTORY, least_pct=0.5)
    assert [change.commit for change in changes(series(values), LINE, strict)] == [LINE[10]]


def test_commits_without_a_figure_are_suspects_too() -> None:
    values = timed([2.0] * 8 + [2.4] * 8)
    values[7] = values[8] = None
    (change,) = found(values)
    assert (change.before, change.commit) == (LINE[6], LINE[9])
    assert change.suspects == (LINE[7], LINE[8], LINE[9])


@pytest.mark.parametrize("values", [[], [2.0], [2.0, 3.0], [2.0, 2.0, 3.0], [2.0] * 10])
def test_too_few_or_equal_values_have_no_change(values: list[float]) -> None:
    assert found(list(values)) == []


def test_equal_values_on_both_sides_of_a_step_are_a_change() -> None:
    """No spread at all, as a fake or a frozen clock gives: the step is still there."""
    assert [change.commit for change in found([2.0] * 5 + [3.0] * 5)] == [LINE[5]]


def test_counts_change_wherever_they_differ_and_exactly() -> None:
    counts = found([64, 64, 65, 65, None, 63], figure="instructions", clock="work")
    assert [(c.commit, c.before, c.old, c.new, c.worse) for c in counts] == [
        (LINE[2], LINE[1], 64, 65, True),
        (LINE[5], LINE[3], 65, 63, False),
    ]
    assert counts[1].suspects == (LINE[4], LINE[5])
    assert all(change.low is None for change in counts)


def test_a_narrower_load_is_worse_though_the_figure_falls() -> None:
    (change,) = found([128, 128, 64], figure="widest_load_bits", clock="work")
    assert change.worse


def test_the_spread_ignores_a_step() -> None:
    flat = np.array(noisy([1.0] * 40, 0.01, 1))
    stepped = flat + np.where(np.arange(40) >= 20, log(1.5), 0.0)
    assert robust_spread(stepped) == pytest.approx(robust_spread(flat), rel=0.15)
    assert change_points(stepped, HISTORY) == [20]


# --- series and drift ----------------------------------------------------------------------------------------------


def made(entries: list, line: list[Commit] | None = None) -> list:  # type: ignore[type-arg]
    return eras(entries, order_of(entries, line), lambda point: True, ["graph"])


@pytest.mark.parametrize("change", [{"version": "v2"}, {"env_key": "other"}])
def test_another_instrument_or_environment_starts_another_series(change: dict[str, str]) -> None:
    entries = [entry(number, 2.0) for number in range(6)] + [entry(number, 3.0, **change) for number in range(6, 12)]
    first, second = made(entries)
    assert [len(era.series[0].observations) for era in (first, second)] == [6, 6]
    assert first.begins is None
    assert second.begins == ("measuring method: measuring code v1 -> v2" if "version" in change else None)
    line = order_of(entries, None)
    assert [changes(era.series[0], line, HISTORY) for era in (first, second)] == [[], []], "no change across them"


def test_the_hash_of_an_older_format_and_its_number_are_one_instrument() -> None:
    entries = [entry(number, 2.0, version="ee98daa5f55dd6f2") for number in range(3)]
    entries += [entry(number, 2.0, version="2") for number in range(3, 6)]
    (era,) = made(entries)
    assert [len(series.observations) for series in era.series] == [6]


def test_an_environment_that_differs_says_in_what() -> None:
    other = entry(3, 2.0, env_key="other")
    assert other.results.env is not None
    other.results.env.identity["triton"] = "3.7.0"
    assert made([entry(number, 2.0) for number in range(3)] + [other])[1].begins == "toolchain: triton 3.6.0 -> 3.7.0"


def test_drift_within_a_session_is_taken_out_by_the_anchor() -> None:
    """Each process is 1 % slower than the last; the anchor ran in processes 0, 4 and 8."""
    slower = [1.01**process for process in range(9)]
    anchor = entry(0, [2.0 * slower[at] for at in (0, 4, 8)], anchor=sha(0))
    for item, at in zip(anchor.results.points[0].rounds, (0, 4, 8), strict=True):
        item.process = at
    others = [entry(at, 2.0 * slower[at], process=at, anchor=sha(0)) for at in (1, 2, 3, 5, 6, 7)]
    (era,) = made([anchor, *others])
    values = [item.value.value for item in era.series[0].observations]
    assert values == pytest.approx([values[0]] * 7, rel=1e-9)
    assert era.series[0].anchored
    for item in (anchor, *others):
        item.anchor = None
    (era,) = made([anchor, *others])
    raw = [item.value.value for item in era.series[0].observations]
    assert max(raw) / min(raw) > 1.05, "without the anchor the drift is there"
    assert not era.series[0].anchored


def test_sessions_are_joined_at_their_anchor() -> None:
    """The second session's machine is 7 % slower at this point."""
    first = [entry(0, [2.0, 2.0], anchor=sha(0)), entry(1, 2.2, anchor=sha(0))]
    second = [entry(0, [2.14, 2.14], anchor=sha(0)), entry(2, 2.2 * 1.07, anchor=sha(0))]
    for item in second:
        item.session = "another"
    (era,) = made(first + second)
    one, two, three = (item.value.value for item in era.series[0].observations)
    assert two == pytest.approx(three) and two / one == pytest.approx(1.1)


def test_a_line_chooses_and_orders_the_commits() -> None:
    entries = [entry(number, 2.0) for number in range(6)]
    line = [commit(number) for number in (1, 2, 4, 9)]
    (era,) = made(entries, line)
    assert [item.commit.sha for item in era.series[0].observations] == [sha(1), sha(2), sha(4)]
    assert [item.sha for item in order_of(entries, None)] == [sha(number) for number in range(6)]
