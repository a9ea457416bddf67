"""A Chrome trace of torch's profiler: kernels belong to the range of their launch, not to when they ran."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest

from bench.model.case import Case
from bench.model.config import PlannedPoint
from profiles import kineto
from profiles.capture import CaptureFailed
from profiles.kineto import EMPTY, TRACED_ROUNDS, Kernel
from profiles.summaries import device_times
from profiles.target import parse_point

REAL = Path(__file__).parents[2] / "docs" / "experiments" / "h100-timeline.trace.json"
POINT = PlannedPoint(Case("decode", 32, 1, 64), "sglang_csgmv-chunk16", "graph")
SHORT = PlannedPoint(Case("decode", 1, 1, 64), "csgmv_embed-vocab_major", "graph")
EAGER = PlannedPoint(Case("decode", 32, 1, 64), "sglang_csgmv-chunk16", "eager")


def event(category: str, name: str, start: float, duration: float, **arguments: object) -> dict[str, object]:
    return {"ph": "X", "cat": category, "name": name, "ts": start, "dur": duration, "args": arguments}


def launched(
    name: str, correlation: int, at: float, ran: float, times: list[float], call: str
) -> list[dict[str, object]]:
    """One call and the kernels it launched, which run long after it."""
    kernels = [event("kernel", name, ran + 20 * k, us, correlation=correlation) for k, us in enumerate(times)]
    return [event("cuda_driver" if call.startswith("cu") and call[2].isupper() else "cuda_runtime", call, at, 5,
                  correlation=correlation), *kernels]  # fmt: skip


@pytest.fixture
def events():
    """Two graph replays in the point's range, whose kernels run while the next range is open; one launch outside."""
    return [
        event("user_annotation", POINT.name, 100, 50),
        event("user_annotation", EAGER.name, 200, 50),
        event("gpu_user_annotation", POINT.name, 200, 50),
        *launched("fill", 1, 110, 210, [1.0, 1.2], "cudaGraphLaunch"),
        *launched("lookup", 2, 120, 212, [8.0, 9.0, 10.0], "cudaGraphLaunch"),
        *launched("lookup", 3, 210, 400, [7.0], "cuLaunchKernelEx"),
        *launched("stray", 4, 180, 500, [3.0], "cudaLaunchKernel"),
        event("kernel", "orphan", 600, 2.0, correlation=99),
        event("cpu_op", "aten::fill_", 110, 1),
    ]


def test_a_kernel_belongs_to_the_range_its_launch_lies_in(events):
    found = kineto.kernels(events)
    fills = [Kernel("fill", POINT.name, 210, 1.0, 110), Kernel("fill", POINT.name, 230, 1.2, 110)]
    assert [k for k in found if k.name == "fill"] == fills
    assert [k.range for k in found if k.name == "lookup"] == [POINT.name] * 3 + [EAGER.name]
    assert {k.name: k.range for k in found if k.range is None} == {"stray": None, "orphan": None}


def timed(point: PlannedPoint, calls: int, untraced: float, traced: float) -> kineto._Timed:
    return kineto._Timed(point, calls, untraced, traced)


def body_of(calls: int = 60):
    """A trace in which each of the point's calls launched a fill of 1 us and a lookup of 9 us."""
    found = [event("user_annotation", POINT.name, 0, 1000), event("user_annotation", EMPTY, 2000, 1000)]
    found += launched("fill", 1, 10, 5000, [1.0] * calls * TRACED_ROUNDS, "cudaGraphLaunch")
    found += launched("lookup", 2, 20, 5000, [9.0] * calls * TRACED_ROUNDS, "cudaGraphLaunch")
    found += launched("empty", 3, 2010, 9000, [0.6, 0.7, 0.8], "cudaGraphLaunch")
    points = [timed(POINT, calls, 11.0, 12.5), timed(SHORT, calls, 1.3, 1.3)]
    return kineto.summarise(found, points, {"graph": 0.8})


def test_device_times_are_medians_a_call_beside_the_clock():
    body = body_of()
    assert body.floor_device_us == pytest.approx(0.7)
    fill, lookup = body.points[0].kernels
    assert (fill.kernel, fill.per_call, fill.device_us) == ("fill", 1.0, 1.0)
    assert (lookup.kernel, lookup.per_call, lookup.device_us) == ("lookup", 1.0, 9.0)
    first, short = device_times(body)
    assert (first.device_us, first.above_floor_us) == (10.0, pytest.approx(10.2))
    assert first.ratio == pytest.approx(10.0 / 10.2)
    assert first.gap_ratio == pytest.approx(10.0 / (11.0 - 2 * 0.1)), "two kernels, two gaps of 0.1 us"
    assert (first.slowed, first.disturbed) == (pytest.approx(12.5 / 11), True)
    assert (short.device_us, short.ratio, short.gap_ratio, short.disturbed) == (None, None, None, False)


def test_short_and_eager_calls_are_not_compared():
    body = body_of()
    body.points[0].untraced_us = 4.9
    assert device_times(body)[0].ratio is None
    body.points[0].untraced_us = 11.0
    body.points[0].clock = "eager"
    body.floor_us["eager"] = 8.0
    assert device_times(body)[0].ratio is None


def test_a_trace_without_any_of_the_kernels_is_a_failure():
    with pytest.raises(CaptureFailed, match="saw no kernel of any point"):
        kineto.summarise([], [timed(POINT, 60, 11.0, 11.0)], {"graph": 0.8})


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"traceEvents": 3}'])
def test_what_is_no_trace_is_named(tmp_path, text):
    file = tmp_path / "x.trace.json"
    file.write_text(text)
    with pytest.raises(CaptureFailed, match="not a Chrome trace"):
        kineto.load(file)


def test_only_complete_events_are_read(tmp_path, events):
    file = tmp_path / "x.trace.json"
    file.write_text(json.dumps({"traceEvents": [*events, {"ph": "M", "name": "process_name"}]}))
    assert kineto.load(file) == events


def test_a_real_trace_of_an_h100_gives_each_call_its_kernels():
    """One replay of 60 calls of each contender: SGLang's kernels have torch's fill before them, ours has none."""
    by_range: dict[str | None, list[Kernel]] = {}
    for kernel in kineto.kernels(kineto.load(REAL)):
        by_range.setdefault(kernel.range, []).append(kernel)
    shares = {}
    for name, found in by_range.items():
        assert name is not None, "every kernel has its launch in a range"
        own = [kernel.device_us for kernel in found if "FillFunctor" not in kernel.name]
        assert len(own) == 60
        shares[parse_point(name).contender] = (len(found) / 60, median(own))
    assert {contender: kernels for contender, (kernels, _) in shares.items()} == {
        "csgmv_embed-vocab_major": 1,
        "csgmv_embed-rank_major": 1,
        "sglang_csgmv-chunk16": 2,
        "sglang_triton": 2,
    }
    times = [shares[name][1] for name in sorted(shares, key=lambda name: shares[name][1])]
    assert sorted(shares, key=lambda name: shares[name][1])[0] == "csgmv_embed-vocab_major"
    assert times[0] == pytest.approx(1.2, abs=0.2) and times[-1] == pytest.approx(11.5, abs=1.0)
