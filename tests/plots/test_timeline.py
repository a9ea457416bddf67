"""The timeline draws one replay of each contender of a case, every kernel at its place."""

from __future__ import annotations

import json

import pytest

from bench.model.case import Case
from bench.model.config import ConfigError, PlannedPoint
from plots import timeline

CASE, OTHER = Case("decode", 256, 1, 64), Case("decode", 1, 1, 16)
OURS, PEER = "csgmv_embed-vocab_major", "sglang_csgmv-chunk16"


def events(point: PlannedPoint, at: float, call_us: list[tuple[str, float]]) -> list[dict[str, object]]:
    """Two rounds of a point: a range, a launch and its kernels, the second round `at` + 500."""
    found: list[dict[str, object]] = []
    for start in (at, at + 500):
        found.append({"ph": "X", "cat": "user_annotation", "name": point.name, "ts": start, "dur": 100, "args": {}})
        arguments = {"correlation": start}
        call = {"ph": "X", "cat": "cuda_runtime", "name": "cudaGraphLaunch", "ts": start + 5, "dur": 3}
        found.append({**call, "args": arguments})
        begun = start + 20 + (start - at) / 100
        for name, us in call_us:
            found.append({"ph": "X", "cat": "kernel", "name": name, "ts": begun, "dur": us, "args": arguments})
            begun += us + 1
    return found


@pytest.fixture
def trace(tmp_path):
    found = events(PlannedPoint(CASE, OURS, "graph"), 0, [("lookup", 1.0)] * 6)
    found += events(PlannedPoint(CASE, PEER, "graph"), 1000, [("FillFunctor", 1.0), ("chunked", 10.0)] * 6)
    found += events(PlannedPoint(CASE, PEER, "eager"), 2000, [("chunked", 10.0)])
    found += events(PlannedPoint(OTHER, OURS, "graph"), 3000, [("lookup", 0.5)])
    file = tmp_path / "x.trace.json"
    file.write_text(json.dumps({"traceEvents": found}))
    return file


def test_a_row_is_the_last_replay_of_a_contender_s_graph(trace):
    found = timeline.data(trace)
    assert found.label == "decode 256, rank 64"
    assert [row.contender for row in found.rows] == [OURS, PEER]
    assert found.rows[0].kernels == [("lookup", 2.0 * k, 1.0) for k in range(6)]
    assert [(name, us) for name, _, us in found.rows[1].kernels][:2] == [("FillFunctor", 1.0), ("chunked", 10.0)]


def test_another_case_is_chosen_by_its_values(trace):
    found = timeline.data(trace, "rank=16,batch_size=1")
    assert [(row.contender, row.kernels) for row in found.rows] == [(OURS, [("lookup", 0.0, 0.5)])]
    with pytest.raises(ConfigError, match="no graph point of a case rank=8"):
        timeline.data(trace, "rank=8")


def test_bars_lie_where_kernels_ran_and_the_window_holds_calls_of_the_slowest(trace):
    from matplotlib.figure import Figure

    found = timeline.data(trace)
    assert timeline._calls_end(found.rows[1]) == 4 * 13 - 1, "the fourth call's kernel ends there"
    axes = Figure().subplots()
    timeline._draw_row(axes, 0, found.rows[1], 51)
    fills, kernels = axes.collections
    assert [tuple(path.get_extents().intervalx) for path in fills.get_paths()] == [
        (13 * k, 13 * k + 1) for k in range(4)
    ]
    assert tuple(kernels.get_paths()[0].get_extents().intervalx) == (2, 12)


def test_the_figure_is_written_twice_alike(trace, tmp_path):
    found = timeline.data(trace)
    once, twice = timeline.draw(found, tmp_path / "once.png"), timeline.draw(found, tmp_path / "twice.png")
    assert once[0].read_bytes()[:4] == b"\x89PNG"
    assert once[1].read_text() == twice[1].read_text()
