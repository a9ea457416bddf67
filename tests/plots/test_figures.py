"""Figures draw what the results hold: every point that has a time, a mark where one failed, nothing else."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from matplotlib.figure import Figure

from bench.judge.estimate import point_estimate
from bench.model import store
from bench.model.case import Case
from bench.model.records import Point, Results, Round
from bench.show.tables import name_of
from plots import bandwidth, scaling

ROOT = Path(__file__).parents[2]
STORED = ROOT / "docs" / "results" / "h200-full.json"


@pytest.fixture(scope="module")
def stored() -> Results:
    return store.read(STORED)


def lines_of(axes) -> dict[str, list[tuple[float, float]]]:  # type: ignore[no-untyped-def]
    return {str(line.get_label()): [tuple(xy) for xy in line.get_xydata()] for line in axes.get_lines()}


def test_scaling_draws_every_time_of_its_cases_and_no_other(stored: Results) -> None:
    assert scaling.data(stored)
    for panel in scaling.data(stored):
        assert {item.contender for item in panel.series} == set(scaling.CONTENDERS) - {
            "base",
            "sglang_triton_v2",
            "vllm",
        }  # no lookup
        for item in panel.series:
            expected = sorted(
                (panel.panel.axis(point.case), point_estimate(point).value)  # type: ignore[union-attr]
                for point in stored.points
                if point.contender == item.contender and point.clock == "graph" and panel.panel.wanted(point.case)
            )
            assert [(mark.x, mark.value_us) for mark in item.marks] == expected
            assert len({mark.x for mark in item.marks}) == len(item.marks) > 2, "one value at each place of the axis"
            axes = Figure().subplots()
            scaling._draw_panel(axes, panel)
            label = name_of(item.contender)
            drawn = lines_of(axes)[label]
            assert [x for x, _ in drawn] == [x for x, _ in expected]
            assert [y for _, y in drawn] == pytest.approx([y for _, y in expected])
        assert panel.floor_us == pytest.approx(0.505, rel=0.05)


def test_a_file_of_sites_has_a_panel_for_each_in_its_usual_setting() -> None:
    def point(site: str, tokens: int, time_us: float, **other: object) -> Point:
        case = Case("decode", tokens, 1, 64, rank_mix="pairs", cache="cold", op="linear", site=site, model="8b")  # type: ignore[arg-type]
        case = msgspec.structs.replace(case, **other)
        return Point(case, scaling.OURS, "graph", 0, "ok", rounds=[Round(0, 1, [time_us])], minimum_bytes=1000)

    points = [point(site, tokens, float(tokens)) for site in ("qkv", "down") for tokens in (1, 32, 128)]
    warm, skewed = point("qkv", 32, 9.0, cache="warm"), point("qkv", 64, 9.0, phase="prefill", seq_len=64, skew=3.5)
    expand = point("qkv", 32, 9.0, op="expand")
    results = msgspec.structs.replace(store.read(STORED), points=[expand, warm, skewed, *points], anchors=[])
    found = scaling.data(results)
    assert [panel.panel.title.split(",")[0] for panel in found] == ["qkv of 8b", "down of 8b"]
    for panel in found:
        (item,) = panel.series
        assert [mark.x for mark in item.marks] == [1, 32, 128]
        assert [mark.value_us for mark in item.marks] == pytest.approx([1, 32, 128])


def test_a_failed_point_is_marked_and_never_drawn_as_a_time(stored: Results) -> None:
    copy = msgspec.json.decode(store.encode(stored), type=Results)
    panel = scaling.PANELS[1]
    (broken,) = (
        p for p in copy.points if p.contender == "sglang_triton" and panel.wanted(p.case) and p.case.rank == 64
    )
    broken.status = "crashed"
    found = scaling.data(copy)[1]
    (item,) = (item for item in found.series if item.contender == "sglang_triton")
    assert [(mark.x, mark.status) for mark in item.marks if mark.value_us is None] == [(64, "crashed")]
    axes = Figure().subplots()
    scaling._draw_panel(axes, found)
    drawn = lines_of(axes)
    assert 64 not in [x for x, _ in drawn[name_of("sglang_triton")]]
    assert [x for line in axes.get_lines() if line.get_marker() == "x" for x in line.get_xdata()] == [64]
    assert [text.get_text() for text in axes.texts] == ["crashed"]


def test_the_bandwidth_holds_every_point_and_what_stands_beside(stored: Results) -> None:
    found = bandwidth.data(stored)
    timed = [p for p in stored.points if p.status == "ok" and p.contender in bandwidth.CONTENDERS]
    assert len(found.points) == len(timed) > 100
    ours = {(p.bytes, round(p.bytes_per_us, 6)) for p in found.points}
    for point in timed:
        assert (point.minimum_bytes, round(point.minimum_bytes / point_estimate(point).value, 6)) in ours  # type: ignore[operator,union-attr]
    assert found.copy_bytes_per_us == pytest.approx(4.24e6, rel=0.02)
    assert {p.cache for p in found.points} >= {"warm", "cold"}


@pytest.mark.parametrize("figure", [scaling, bandwidth], ids=lambda module: module.__name__)
def test_a_figure_is_written_as_png_and_svg_and_twice_alike(stored: Results, tmp_path: Path, figure) -> None:  # type: ignore[no-untyped-def]
    once = figure.draw(stored, tmp_path / "deep" / "once.png")
    twice = figure.draw(stored, tmp_path / "twice.png")
    assert [path.suffix for path in once] == [".png", ".svg"]
    assert once[0].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert once[1].read_text() == twice[1].read_text()


def test_results_without_a_timed_point_give_an_empty_figure(stored: Results, tmp_path: Path) -> None:
    empty = msgspec.structs.replace(stored, points=[], anchors=[])
    assert bandwidth.data(empty).points == []
    assert all(panel.series == [] for panel in scaling.data(empty))
    for figure in (scaling, bandwidth):
        written = figure.draw(empty, tmp_path / "empty.png")
        assert len(written) == 2 and all(path.exists() for path in written)
