"""Heat maps, rounds, noise map, gate summary and history draw what their records hold, all of it and nothing else."""

from __future__ import annotations

import copy
from math import exp, log
from pathlib import Path
from statistics import median, stdev

import msgspec
import numpy as np
import pytest
from matplotlib.figure import Figure

from bench.execute import interleaved as session
from bench.execute.stages import run_pairs
from bench.judge import comparable
from bench.judge.changes import changes
from bench.judge.estimate import estimate, point_estimate, round_values
from bench.judge.history import History
from bench.judge.series import eras, order_of
from bench.judge.times import judge_pairs
from bench.judge.work import judge_work
from bench.model import config, store
from bench.model.case import Case
from bench.model.pairs import PairRun
from bench.model.records import Point, Results, ResultsError, Round
from bench.model.verdict import Report
from bench.show.tables import name_of
from bench.workload.tensors import sequence_lengths
from plots import gate, heatmap, history, inputs, noise, rounds, scaling
from plots.labels import case_name
from plots.style import SLOWER
from tests.support.gate import QUICK_POINTS, FakeGpu, fake_trees, work_results
from tests.support.history import HISTORY, OURS, PEER, entry, sha

ROOT = Path(__file__).parents[2]
FULL, EAGER, AA = (ROOT / "docs" / "results" / name for name in ("h100-full.json", "h100-eager.json", "h200-aa.json"))


@pytest.fixture(scope="module")
def h100() -> Results:
    return inputs.together([(path, store.read(path)) for path in (FULL, EAGER)])


@pytest.fixture(scope="module")
def aa() -> Results:
    return store.read(AA)


@pytest.fixture(scope="module")
def pairs() -> PairRun:
    """A self-check on a machine whose noise is known; one point fails."""
    gpu = FakeGpu(process_sd=0.006, slowdown=lambda planned: 0.05 if planned.case.rank == 64 else 0.0)
    loaded = config.load()
    plan = config.make_plan(loaded, "quick", overrides=config.Axes(), clocks=["graph"], contenders=["csgmv_embed-*"])
    with fake_trees(None, None) as sides:
        run = session.pair_run(loaded, "self-check", sides, session.pair_points(plan.points), 7, [])
        list(run_pairs(run, sides, gpu.open_side))
    run.points[0].status, run.points[0].reason, run.points[0].side, run.points[0].rounds = "wrong", "NaN", "B", []
    return run


# --- heat maps -----------------------------------------------------------------------------------------------------


def test_every_ratio_of_a_plain_case_is_in_its_cell(h100: Results) -> None:
    maps = heatmap.data(h100)
    assert {(item.peer, item.clock) for item in maps} >= {(peer, "graph") for peer in heatmap.PEERS}
    assert any(item.clock == "eager" for item in maps)
    points = {point.key: point for point in h100.points}
    for item in maps:
        expected = {}
        for (case, contender, clock), peer in points.items():
            plain = Case(case.phase, case.batch_size, case.seq_len, case.rank)
            if (contender, clock) == (item.peer, item.clock) and case == plain and case.phase != "mixed":
                ours = points[case, heatmap.OURS, clock]
                ratio = point_estimate(peer).value / point_estimate(ours).value  # type: ignore[union-attr]
                expected[heatmap._row(case), case.rank] = ratio
        assert {(cell.row, cell.rank): cell.ratio for cell in item.cells} == pytest.approx(expected)
        axes = Figure().subplots()
        heatmap._draw_map(axes, item, labelled=True)
        image = np.asarray(axes.get_images()[0].get_array())
        drawn = {
            (item.rows[y], item.ranks[x]): image[y, x]
            for y, x in np.ndindex(image.shape)
            if np.isfinite(image[y, x]) and not np.ma.is_masked(axes.get_images()[0].get_array()[y, x])
        }
        assert drawn == pytest.approx({place: heatmap.shade(ratio) for place, ratio in expected.items()})
        assert len(axes.texts) == len(expected)
        bold = sum(text.get_fontweight() == "bold" for text in axes.texts)
        assert bold == sum(ratio <= 1 / heatmap.EQUAL for ratio in expected.values())


def test_a_peer_that_is_faster_is_as_visible_as_one_that_is_slower() -> None:
    assert heatmap.shade(1.02) == heatmap.shade(0.98) == 0
    for lost, won in ((0.9, 1.5), (0.68, 3.0), (0.4, 10.0)):
        assert -1 < heatmap.shade(lost) < -heatmap.shade(won) < 0


def test_a_peer_without_a_time_has_its_status_in_the_cell(h100: Results) -> None:
    changed = copy.deepcopy(h100)
    broken = next(p for p in changed.points if p.key == (Case("decode", 32, 1, 64), "sglang_triton", "graph"))
    broken.status = "crashed"
    found = next(item for item in heatmap.data(changed) if (item.peer, item.clock) == ("sglang_triton", "graph"))
    (cell,) = (cell for cell in found.cells if (cell.row, cell.rank) == ("decode, 32 requests", 64))
    assert (cell.ratio, cell.status) == (None, "crashed")
    axes = Figure().subplots()
    heatmap._draw_map(axes, found, labelled=True)
    assert "crash" in [text.get_text() for text in axes.texts]


# --- rounds and noise ----------------------------------------------------------------------------------------------


def test_every_round_and_block_is_drawn_around_its_median(aa: Results) -> None:
    strips = rounds.data(aa)
    assert sum(len(strip.rows) for strip in strips) == len(aa.points) == 48
    for strip in strips:
        axes = Figure().subplots()
        rounds._draw_strip(axes, strip, [row.label for row in strip.rows], labelled=True)
        points = sorted((p for p in aa.points if p.contender == strip.contender), key=lambda p: p.case)
        limit = axes.get_xlim()[1] / 1.06
        expected, blocks = [], []
        for place, point in enumerate(points):
            values = round_values(point.rounds)
            middle = median(values)
            expected += [(100 * log(value / middle), place) for value in values]
            blocks += [(100 * log(b / middle), place) for item in point.rounds for b in item.blocks_us]
        drawn = {"|": [], "rounds": []}  # type: ignore[var-annotated]
        for line in axes.get_lines():
            if line.get_linestyle() == "None":
                drawn["|" if line.get_marker() == "|" else "rounds"] += [tuple(xy) for xy in line.get_xydata()]
        held = [(max(-limit, min(limit, x)), y) for x, y in blocks]
        for found, wanted in ((drawn["rounds"], expected), (drawn["|"], held)):
            assert np.array(sorted(found)) == pytest.approx(np.array(sorted(wanted)), abs=1e-9)
        assert all(abs(x) <= limit for x, _ in expected), "no round is drawn where it is not"


def test_two_modes_stay_two_clusters_and_a_failed_point_stays(aa: Results) -> None:
    changed = copy.deepcopy(aa)
    changed.points[0].rounds = [Round(n, n, [2.0 if n % 2 else 2.1]) for n in range(8)]
    changed.points[1].status = "crashed"
    rows = {(s.contender, row.label): row for s in rounds.data(changed) for row in s.rows}
    cases = {point.case for point in changed.points}
    first = rows[changed.points[0].contender, case_name(changed.points[0].case, cases)]
    assert sorted({round(value, 2) for _, value, _ in first.rounds}) == pytest.approx([-2.47, 2.41], abs=0.02)
    second = rows[changed.points[1].contender, case_name(changed.points[1].case, cases)]
    assert (second.status, second.rounds) == ("crashed", ())


def test_the_noise_map_has_spread_offset_and_what_is_seen_of_every_point(pairs: PairRun) -> None:
    cells = noise.data(pairs)
    assert len(cells) == len(pairs.points)
    assert sum(cell.spread_pct is None for cell in cells) == 1
    by_name = {(cell.case, cell.contender): cell for cell in cells}
    for point in pairs.points[1:]:
        found = by_name[case_name(point.case, {p.case for p in pairs.points}), point.contender]
        by_process: dict[int, list[float]] = {}
        for item in point.of_stage("screen"):
            by_process.setdefault(item.process, []).append(item.log_ratio)
        values = [sum(part) / len(part) for part in by_process.values()]
        assert found.spread_pct == pytest.approx(100 * stdev(values))
        assert found.offset_pct == pytest.approx(100 * (exp(sum(values) / len(values)) - 1))
    axes = Figure().subplots()
    cases, names = sorted({c.case for c in cells}), sorted({c.contender for c in cells})
    noise._draw_map(axes, cells, cases, names)
    assert sum("sees" in text.get_text() for text in axes.texts) == len(cells) - 1
    assert [text.get_text() for text in axes.texts if "sees" not in text.get_text()] == ["wrong"]


# --- gate ----------------------------------------------------------------------------------------------------------


def test_the_gate_summary_draws_every_verdict_with_its_interval(pairs: PairRun) -> None:
    report = judge_pairs(pairs)
    bars = gate.data(report)
    assert len(bars) == len(report.verdicts) == QUICK_POINTS
    assert [bar.status for bar in bars[:2]] != ["pass", "pass"], "the worst comes first"
    axes = Figure().subplots()
    gate._draw_bars(axes, bars)
    dots = sorted(
        (x, line.get_marker())
        for line in axes.get_lines()
        if line.get_linestyle() == "None" and line.get_marker() != "|"
        for x in line.get_xdata()
    )
    expected = sorted((100 * (v.ratio - 1), gate.LOOKS[v.status][1]) for v in report.verdicts if v.ratio is not None)
    assert [x for x, _ in dots] == pytest.approx([x for x, _ in expected])
    assert [mark for _, mark in dots] == [mark for _, mark in expected]
    assert [text.get_text() for text in axes.texts] == ["error: wrong on side B: NaN"]


def test_counted_verdicts_are_words() -> None:
    before, after = work_results(), work_results(instructions=300)
    match = comparable.match(before.points, after.points, lambda point: True)
    report = judge_work(before, after, config.load().gate, match, counts_only=False, renew="renew")
    axes = Figure().subplots()
    gate._draw_bars(axes, gate.data(report))
    assert [text.get_text() for text in axes.texts] == ["slow: instructions 200 -> 300", "pass", "pass"]


# --- history -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def line() -> History:
    """Fourteen commits on one instrument, six on a later one; the ninth is 10 % slower, the fifth fails."""
    entries = []
    for number in range(20):
        level = 2.0 * (1.1 if number >= 8 else 1.0) * (1 + 0.002 * ((number * 7) % 5 - 2))
        made = entry(number, [level * 0.999, level * 1.001], version="v1" if number < 14 else "v2", anchor=sha(0))
        made.results.points[0].floor_us = [0.8]
        if number == 4:
            made.results.points[0] = Point(made.results.points[0].case, OURS, "graph", 0, "error", "ImportError")
        if number == 0:
            peer = Point(made.results.points[0].case, PEER, "graph", 1, "ok", rounds=[Round(0, 0, [5.0])])
            made.results.points.append(peer)
        entries.append(made)
    commits = order_of(entries, None)
    found = eras(entries, commits, lambda point: True, ["graph"])
    named = [change for era in found for one in era.series for change in changes(one, commits, HISTORY)]
    return History("graph", commits, found, named, [])


def test_the_history_draws_every_commit_and_marks_the_change(line: History) -> None:
    (panel,) = history.data(line)
    assert len(panel.names) == 20
    axes = Figure().subplots()
    history._draw_panel(axes, panel, history._letters([panel]), labelled=True)
    drawn = [tuple(xy) for drawn in axes.get_lines() if drawn.get_label() == name_of(OURS) for xy in drawn.get_xydata()]
    eras = [[item.value.value for item in era.series[0].measured if item.value] for era in line.eras]
    expected = [100 * value / values[0] for values in eras for value in values]
    assert [y for _, y in drawn] == pytest.approx(expected) and len(drawn) == 19
    assert [x for x, _ in drawn] == [*range(4), *range(5, 14), *range(15, 21)], "a gap before the new series"
    crosses = [x for item in axes.get_lines() if item.get_marker() == "x" for x in item.get_xdata()]
    assert crosses == [4]
    texts = [text.get_text() for text in axes.texts]
    assert "A  +10 %" in texts
    assert history._told([panel])[0].startswith(
        "A: 000000008 (commit 8). Measured before it: 000000007 (commit 7). Measured after it: 0000"
    )
    marks = [item.get_xdata()[0] for item in axes.get_lines() if item.get_color() == SLOWER]
    assert marks == [7.5], "between the last fast commit and the first slow one"
    assert "new series: measuring method: measuring code v1 -> v2" in texts
    title = axes.get_title(loc="left")
    assert f"100 % is {eras[0][0]:.3g} us of {name_of(OURS)}" in title and "an empty kernel 0.8 us" in title


def test_the_interval_of_a_commit_is_that_of_its_rounds(line: History) -> None:
    (panel,) = history.data(line)
    mark = panel.lines[0].marks[0]
    level = 2.0 * 0.996
    expected = estimate([level * 0.999, level * 1.001])
    assert expected is not None
    assert (mark.value, mark.low, mark.high) == pytest.approx((expected.value, expected.low, expected.high))


def test_peers_of_the_anchor_are_reference_lines(line: History) -> None:
    first = History(line.clock, line.line, line.eras[:1], line.changes, [])
    (panel,) = history.data(first)
    assert panel.references == ((PEER, pytest.approx(5.0)),)
    assert [item.contender for item in panel.lines] == [OURS], "a reference is no series"


def test_the_longest_sequence_is_that_of_the_workload(h100: Results) -> None:
    cases = {point.case for point in h100.points if point.case.phase != "mixed"}
    assert cases
    for case in cases:
        assert abs(scaling.longest_sequence(case) - sequence_lengths(case).max()) <= 1


# --- inputs --------------------------------------------------------------------------------------------------------


def test_files_that_do_not_belong_together_are_refused_by_name(tmp_path: Path, h100: Results) -> None:
    with pytest.raises(ResultsError, match=r"h200-aa.json: was measured on NVIDIA H200, .*h100-full.json on NVIDIA H1"):
        inputs.load([FULL, AA])
    with pytest.raises(ResultsError, match="no file was given; expected a results file"):
        inputs.load([])
    other = tmp_path / "other.json"
    other.write_text('{"schema": {"name": "asv", "version": "2"}}', encoding="utf-8")
    with pytest.raises(ResultsError, match=r"other.json: is a 'asv'; expected a results file"):
        inputs.load([other])
    other.write_text("[1", encoding="utf-8")
    with pytest.raises(ResultsError, match=r"other.json: not a file of this suite"):
        inputs.load([other])
    with pytest.raises(ResultsError, match=r"has .*, graph, .*, which .* has too; expected each point once"):
        inputs.together([(FULL, h100), (FULL, h100)])
    with pytest.raises(ResultsError, match="holds no point; expected a finished sweep"):
        inputs.together([(FULL, msgspec.structs.replace(h100, points=[]))])


def test_a_report_of_the_gate_is_read_back(tmp_path: Path, pairs: PairRun) -> None:
    from bench.show.exports import plain_json

    report = judge_pairs(pairs)
    path = tmp_path / "gate.json"
    path.write_text(plain_json(report), encoding="utf-8")
    found = inputs.load([path]).reports[0][1]
    assert isinstance(found, Report) and len(found.verdicts) == QUICK_POINTS
    assert found.counts() == report.counts()
