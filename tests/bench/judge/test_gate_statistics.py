"""The gate's tests of hypotheses: against the libraries' own answers, at their edges, and by simulation."""

from __future__ import annotations

from dataclasses import replace
from math import log

import msgspec
import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from bench.judge import statistics
from bench.judge.statistics import confirm, detectable, flagged, log_limit, outcome, welch, within_floor
from bench.judge.times import pair_design
from docs.experiments.simulate_gate import Counts, Machine, Noise, cleared_after, interleaved, simulate, stored
from tests.support.gate import GATE

pytestmark = pytest.mark.numeric
RNG = np.random.default_rng(5)


def test_the_screen_flags_by_the_mean_in_both_directions() -> None:
    up, down = log(1.03), log(0.97)
    rows = np.array([[up, up], [up, 0.0], [down, down], [0.0, 0.0], [0.05, -0.05]])
    assert flagged(rows, 2.0).tolist() == [True, False, True, False, False]


def test_confirmation_is_a_one_sided_t_test_with_holm_over_its_rows() -> None:
    rows = RNG.normal(0.01, 0.01, (4, 12))
    tested = confirm(rows, alpha=0.005)
    raw = [stats.ttest_1samp(row, 0.0, alternative="greater").pvalue for row in rows]
    assert [item.p for item in tested] == pytest.approx(raw)
    ordered = sorted(raw)
    holm = [min(1.0, max((4 - i) * ordered[i] for i in range(ordered.index(p) + 1))) for p in raw]
    assert [item.p_holm for item in tested] == pytest.approx(holm)
    assert [item.rejected for item in tested] == [p < 0.005 for p in holm]
    low, high = stats.t.interval(0.95, 11, rows[0].mean(), stats.sem(rows[0]))
    assert statistics.interval(rows[0]) == pytest.approx((tested[0].mean, low, high))


def test_more_flagged_points_make_each_of_them_harder_to_reject() -> None:
    row = np.array([[0.03, 0.02, 0.05, 0.04, 0.01]])
    alone = confirm(row, alpha=0.005)[0]
    others = np.random.default_rng(1).normal(0.0, 0.01, (30, 5))  # none of which is as sure, whatever ran before
    among = confirm(np.concatenate([row, others]), alpha=0.005)[0]
    assert alone.p == pytest.approx(among.p)
    assert among.p_holm == pytest.approx(31 * alone.p)


def test_faster_is_the_other_side_of_the_same_test() -> None:
    rows = RNG.normal(-0.05, 0.01, (1, 12))
    assert confirm(rows, alpha=0.005, slower=False)[0].rejected
    assert not confirm(rows, alpha=0.005)[0].rejected


@pytest.mark.parametrize(("value", "slower", "p"), [(0.05, True, 0.0), (0.05, False, 1.0), (0.0, True, 1.0)])
def test_rows_without_any_spread_have_an_answer(value: float, slower: bool, p: float) -> None:
    assert confirm(np.full((1, 12), value), alpha=0.005, slower=slower)[0].p == p


def test_nothing_to_confirm_is_nothing_confirmed() -> None:
    assert confirm(np.empty((0, 12)), alpha=0.005) == []
    assert statistics.compare_unpaired([], [], alpha=0.005) == []


def test_welch_is_scipys_and_takes_sides() -> None:
    before, after = RNG.normal(0.0, 0.01, 6), RNG.normal(0.03, 0.02, 12)
    difference, low, high, p = welch(before, after)
    assert difference == pytest.approx(after.mean() - before.mean())
    assert p == pytest.approx(stats.ttest_ind(after, before, equal_var=False).pvalue)
    assert low < difference < high
    assert welch(before, after[:1]) == (after[0] - before.mean(), -np.inf, np.inf, 1.0)
    assert welch(before[:1].repeat(3), after)[3] < 1.0, "equal times on one side are no warning"
    assert welch(before[:1].repeat(3), before[:1].repeat(3))[3] == 1.0


def test_unpaired_samples_of_any_size_are_compared_on_one_side_with_holm() -> None:
    before = [RNG.normal(0.0, 0.01, size) for size in (3, 6, 4, 1)] + [np.zeros(3), np.zeros(3)]
    after = [RNG.normal(0.03, 0.02, size) for size in (12, 4, 5, 9)] + [np.full(4, 0.1), np.zeros(4)]
    slow = statistics.compare_unpaired(before, after, alpha=0.005)
    for index in range(3):
        expected = stats.ttest_ind(after[index], before[index], equal_var=False, alternative="greater").pvalue
        assert slow[index].p == pytest.approx(expected)
    assert [item.p for item in slow[3:]] == [1.0, 0.0, 1.0], "one value, equal values that differ, equal values"
    assert [item.p_holm for item in slow] == pytest.approx(multipletests([item.p for item in slow], method="holm")[1])
    fast = statistics.compare_unpaired(before, after, alpha=0.005, slower=False)
    assert fast[0].p == pytest.approx(1 - slow[0].p)


def test_cleared_points_stay_in_the_family_of_those_that_are_tested() -> None:
    rows = RNG.normal(0.01, 0.01, (2, 16))
    alone, among = confirm(rows, alpha=0.005), confirm(rows, alpha=0.005, cleared=8)
    assert [item.p for item in among] == [item.p for item in alone]
    assert min(item.p_holm for item in among) == pytest.approx(10 * min(item.p for item in alone))
    assert confirm(np.empty((0, 16)), alpha=0.005, cleared=3) == []


def test_a_point_is_within_the_floor_when_both_of_its_one_sided_bounds_are() -> None:
    rows = RNG.normal(0.01, 0.02, (200, 4))
    highs = [stats.t.ppf(0.9, 3) * stats.sem(row) + abs(row.mean()) for row in rows]
    inside = within_floor(rows, 2.5, 0.9)
    assert inside.tolist() == [high < log_limit(2.5) for high in highs]
    assert 20 < inside.sum() < 180
    assert within_floor(-rows, 2.5, 0.9).tolist() == inside.tolist()
    assert not within_floor(np.zeros((1, 4)), 2.5, 1.0).any(), "certainty is never reached"
    assert within_floor(np.array([[0.01] * 4, [0.03] * 4]), 2.5, 0.9).tolist() == [True, False]


def test_points_are_cleared_at_the_end_of_a_wave_and_keep_their_first_clearing() -> None:
    late = np.array([0.04, -0.02, 0.03, -0.03, *[0.0] * 12])
    never = np.full(16, 0.05)
    rows = np.array([np.zeros(16), late, never])
    assert cleared_after(rows, 4, 2.5, 0.9).tolist() == [4, 8, 0]
    assert cleared_after(rows, 8, 2.5, 0.9).tolist() == [8, 8, 0]
    assert cleared_after(rows, 16, 2.5, 0.9).tolist() == [0, 0, 0], "all are in: the test decides"
    assert cleared_after(rows, 1, 2.5, 0.9)[0] == 3, "two processes give no observation a process"


def one_row(mean: float, rejected: bool) -> statistics.Tested:
    return statistics.Tested(mean, 0.001, 0.001, rejected)


@pytest.mark.parametrize(
    ("mean", "slow", "fast", "said"),
    [
        (0.030, True, False, "slow"),
        (0.020, True, False, "pass"),  # significant, but below the floor
        (0.030, False, False, "inconclusive"),
        (-0.030, False, True, "fast"),
        (-0.030, False, False, "pass"),  # an improvement that is none fails nobody
        (0.0, False, False, "pass"),
    ],
)
def test_a_change_counts_when_significant_and_past_the_floor(mean: float, slow: bool, fast: bool, said: str) -> None:
    assert outcome(one_row(mean, slow), one_row(mean, fast), 2.5) == said


def test_the_smallest_detectable_slowdown_is_found_as_often_as_it_says() -> None:
    """Simulated without the process and layout structure: the formula's own assumptions."""
    design = pair_design(GATE, GATE.graph)
    sd = 0.01
    least = float(detectable(np.array([sd]), design)[0])
    screen = RNG.normal(least, sd, (4000, design.screen_observations))
    fresh = RNG.normal(least, sd, (4000, design.confirm_observations))
    rejected = stats.ttest_1samp(fresh, 0.0, axis=1, alternative="greater").pvalue < design.alpha
    found = flagged(screen, design.screen_pct) & rejected & (fresh.mean(axis=1) > log_limit(design.floor_pct))
    assert 0.98 < found.mean() < 0.999
    assert np.isinf(detectable(np.array([np.nan]), design)).all()
    quiet, noisy = detectable(np.array([0.001, 0.05]), design)
    assert log_limit(GATE.graph.floor_pct) < quiet < least < noisy


def test_the_power_of_the_t_test_is_that_of_statsmodels() -> None:
    """Where the t test is the highest hurdle."""
    for observations in (3, 8, 16):
        design = replace(pair_design(GATE, GATE.graph), confirm_observations=observations, screen_observations=10**6)
        each = 1 - (1 - design.power) / 3
        size = TTestPower().solve_power(nobs=observations, alpha=design.alpha, power=each, alternative="larger")
        assert float(detectable(np.array([1.0]), design)[0]) == pytest.approx(size, rel=1e-4)


def simulated(noise: Noise, **options: object) -> Counts:
    return simulate(noise, GATE, **options)  # type: ignore[arg-type]


def test_a_run_over_500_points_and_two_modes_is_quiet_and_finds_5_percent() -> None:
    """The large simulation is docs/experiments/simulate_gate.py, its figures are in docs/explanation/gate.md."""
    quiet = simulated(Noise(), runs=100)
    assert (quiet.runs_with_false_slow, quiet.runs_with_false_fast) == (0, 0)
    assert quiet.flagged > 0, "nothing was screened in: the confirmation was not put to the test"
    slowed = simulated(Noise(), runs=20, slowed=25)
    assert slowed.slowed == 1000
    assert slowed.detection_rate >= 0.985


def test_clearing_points_early_costs_little_power_and_saves_most_processes() -> None:
    """The same noise with and without the looks."""
    patient = msgspec.structs.replace(GATE, clear_confidence=1.0)
    options = {"runs": 15, "slowed": 40, "seed": 3}
    looked, unlooked = (simulate(Noise(), gate, **options) for gate in (GATE, patient))
    assert looked.slowed == 1200
    assert unlooked.detection_rate - looked.detection_rate < 0.005
    assert looked.flagged == unlooked.flagged
    assert looked.confirming < 0.6 * unlooked.confirming == 0.6 * GATE.confirm_processes * looked.flagged


def test_without_confirmation_the_screen_alone_would_raise_false_alarms() -> None:
    quiet = simulated(Noise(), runs=3)
    assert quiet.flagged / quiet.runs > 1


def test_bimodal_points_raise_no_alarm() -> None:
    quiet = simulated(replace(Noise(), bimodal_share=1.0), runs=5)
    assert quiet.runs_with_false_slow == 0
    assert quiet.flagged > 50


def test_anchors_keep_a_session_shift_out_of_a_stored_comparison() -> None:
    """A session 3 % slower as a whole would screen everything in; what the anchors see is subtracted."""
    noise = replace(Noise(), process_sd_pct=0.3, session_sd_pct=3.0, bimodal_share=0.0)
    corrected = simulated(noise, runs=3, use=stored)
    blind = simulated(replace(noise, anchor_sd_pct=5.0), runs=3, use=stored)
    assert corrected.runs_with_false_slow == 0
    assert corrected.flagged < 0.02 * 3000 < blind.flagged


def test_both_sides_of_an_interleaved_run_share_their_session() -> None:
    machine = Machine(replace(Noise(), session_sd_pct=50.0), 100, np.random.default_rng(1))
    assert set(interleaved(machine, GATE, np.zeros(100)).verdicts) <= {"unflagged", "pass"}
