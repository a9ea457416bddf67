"""torch's profiler in this process: per-kernel device times beside the suite's clock. Only this module knows it.

It makes two passes, because CUPTI slows what it watches: every point is first timed by the suite's clock with the
profiler off, then set up again and traced. A kernel belongs to the point in whose range the host launched it. That is
found by the correlation id of the launch, never by the kernel's own time.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.model.config import Measure, PlannedPoint
from profiles.capture import CaptureFailed
from profiles.records import TraceBody, TracedKernel, TracedPoint
from profiles.target import Target

if TYPE_CHECKING:
    import torch

    from bench.contenders.base import Launch
    from bench.execute.measure import Bench

SUFFIX = ".trace.json"
EMPTY = "empty kernel"  # the range of the floor's kernel
LAUNCHES = ("cuda_runtime", "cuda_driver")
GPU_WORK = ("kernel", "gpu_memset", "gpu_memcpy")
TRACED_ROUNDS = 5
COMPLETE = "X"
LARGEST = 1e18  # us: more is no time
WORDS = {"name": "a name", "ts": "a start", "dur": "an end", "correlation": "the number of their launch"}


@dataclass(frozen=True)
class Interval:
    """A host range of the trace, in us."""

    name: str
    start_us: float
    end_us: float


@dataclass(frozen=True)
class Kernel:
    """A kernel of the trace, the call that launched it, and the name of that call's range (None outside all ranges).

    Times are the trace's, in us. `called_us` is when the call began; None if the trace has no such call.
    """

    name: str
    range: str | None
    start_us: float
    device_us: float
    called_us: float | None


@dataclass
class _Timed:
    """A point between its two passes."""

    point: PlannedPoint
    calls: int
    untraced_us: float
    traced_us: float = 0.0


def trace(target: Target, settings: Measure, output: Path) -> TraceBody:
    """Time and trace the target's points on this machine's GPU, and write the Chrome trace to `output`.

    A row of calls is `settings.nodes` launches, as the clock makes them, whatever the target says. Raises NotMeasured
    for a point that cannot be launched or is wrong, and CaptureFailed if the profiler saw no kernel.
    """
    import torch

    from bench.clocks.anchors import capture_empty, empty_eager_us, empty_graph_us
    from bench.execute import measure

    os.environ.setdefault("SGLANG_USE_CUSTOM_TRITON_KERNEL_CACHE", "0")  # its key omits the rank
    device = torch.device("cuda", torch.cuda.current_device())
    bench = measure.Bench(device, settings, process=0)
    bench.l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    empty = capture_empty(settings.nodes)
    floors = {
        "graph": empty_graph_us(empty, settings.block_ms),
        "eager": empty_eager_us(settings.eager_calls),
    }
    clocks = {point.clock for point in target.points}
    timed = [_untraced(bench, point) for point in target.points]
    with _profiler() as profiler:
        with torch.profiler.record_function(EMPTY):
            empty.replay()
            torch.cuda.synchronize()
        for item in timed:
            item.traced_us = _traced(bench, item)
    profiler.export_chrome_trace(str(output))
    return summarise(load(output), timed, {name: us for name, us in floors.items() if name in clocks})


@contextmanager
def _profiler() -> Iterator[Any]:
    from torch.profiler import ProfilerActivity, profile

    # CPU: without it the trace has no ranges to attribute by. It costs host time per torch call, on no device time.
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as profiler:
        yield profiler


def _untraced(bench: Bench, point: PlannedPoint) -> _Timed:
    """Verify and time a point by the suite's own clock."""
    from bench import contenders
    from bench.clocks import eager, graph
    from bench.execute import measure

    settings = bench.settings
    contender = contenders.build(point.contender, point.case.op, point.case.site)
    if reason := contenders.unavailable(contender):
        raise measure.NotMeasured("skipped", f"{point.contender}: {reason}")
    sets = measure.index_sets(bench, point.case)
    workload = bench.workload(point.case, sets)
    launch = contender.setup(workload, static=point.clock == "graph")
    if point.clock == "eager":
        measure.verify_eager(contender, workload, launch)
        blocks, _ = eager.sample(launch, index_sets=sets, calls=settings.eager_calls, blocks=settings.blocks)
        return _Timed(point, settings.eager_calls, median(blocks))
    captured = graph.capture(launch, index_sets=sets, nodes=settings.nodes)
    measure.verify_graph(contender, workload, captured)
    flush = _flush(bench, point)
    blocks = graph.sample(captured, blocks=settings.blocks, block_ms=settings.block_ms, flush=flush)
    return _Timed(point, captured.nodes, median(blocks))


def _traced(bench: Bench, item: _Timed) -> float:
    """Time of a call under the profiler; each round of calls in a range that carries the point's name."""
    import torch

    from bench import contenders
    from bench.clocks import graph
    from bench.execute import measure

    point = item.point
    contender = contenders.build(point.contender, point.case.op, point.case.site)
    sets = measure.index_sets(bench, point.case)
    launch = contender.setup(bench.workload(point.case, sets), static=point.clock == "graph")
    calls = _calls(launch, sets, item)
    flush = _flush(bench, point)
    calls()
    torch.cuda.synchronize()
    rounds = []
    for _ in range(TRACED_ROUNDS):
        if flush is not None:
            torch.amax(flush)
            torch.cuda.synchronize()
        with torch.profiler.record_function(point.name):
            rounds.append(graph.event_us(calls) / item.calls)
    return median(rounds)


def _calls(launch: Launch, sets: int, item: _Timed) -> Callable[[], object]:
    from bench.clocks import graph

    if item.point.clock == "graph":
        return graph.capture(launch, index_sets=sets, nodes=item.calls, exact=True).replay
    return lambda: [launch(call % sets) for call in range(item.calls)]


def _flush(bench: Bench, point: PlannedPoint) -> torch.Tensor | None:
    from bench.clocks import graph

    cold = point.case.cache == "cold" and point.clock == "graph"
    return graph.flush_buffer(bench.l2_bytes, bench.device) if cold else None


def load(path: Path) -> list[Any]:
    """The complete events of a Chrome trace, and those that do not say whether they are. Raises CaptureFailed."""
    try:
        events = json.loads(path.read_bytes())["traceEvents"]
        return [event for event in events if not isinstance(event, dict) or event.get("ph", COMPLETE) == COMPLETE]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CaptureFailed(f"{path}: not a Chrome trace: {error}") from error


def intervals(events: Sequence[Any], lacking: Counter[str] | None = None) -> list[Interval]:
    """The ranges that the program itself named, by start. What is left out is counted in `lacking`."""
    found = [
        Interval(event["name"], event["ts"], event["ts"] + event["dur"])
        for event in _usable(events, ("user_annotation",), "ranges", ("name", "ts", "dur"), _counter(lacking))
    ]
    return sorted(found, key=lambda item: item.start_us)


def kernels(events: Sequence[Any], lacking: Counter[str] | None = None) -> list[Kernel]:
    """The kernels, each with the range of its launch.

    Our ranges do not nest, so the one begun last is the only one. A kernel without name, time or launch number is left
    out and counted in `lacking`.
    """
    counted = _counter(lacking)
    for event in events:
        if not isinstance(event, dict):
            counted["events that are no objects"] += 1
        elif not isinstance(event.get("cat"), str):
            counted["events without a category"] += 1
        elif "ph" not in event:
            counted["events of an unknown phase"] += 1
    ranges = intervals(events, counted)
    starts = [item.start_us for item in ranges]
    calls = _usable(events, LAUNCHES, "calls", ("ts", "correlation"), counted)
    launched = {event["args"]["correlation"]: event["ts"] for event in calls}

    def enclosing(moment_us: float | None) -> str | None:
        place = bisect_right(starts, moment_us) - 1 if moment_us is not None else -1
        inside = place >= 0 and moment_us is not None and moment_us <= ranges[place].end_us
        return ranges[place].name if inside else None

    found = []
    for event in _usable(events, GPU_WORK, "kernels", ("name", "ts", "dur", "correlation"), counted):
        called_us = launched.get(event["args"]["correlation"])
        found.append(Kernel(event["name"], enclosing(called_us), event["ts"], event["dur"], called_us))
    return found


def _counter(lacking: Counter[str] | None) -> Counter[str]:
    return Counter() if lacking is None else lacking


def _usable(
    events: Sequence[Any], categories: Sequence[str], what: str, needed: Sequence[str], lacking: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Complete events of some categories that have all that is needed of them; the others are counted."""
    for event in events:
        if not isinstance(event, dict) or event.get("cat") not in categories or event.get("ph") != COMPLETE:
            continue
        missing = [WORDS[name] for name in needed if not _has(event, name)]
        if missing:
            lacking[f"{what} without {' and '.join(missing)}"] += 1
        else:
            yield event


def _has(event: dict[str, Any], name: str) -> bool:
    if name == "name":
        return isinstance(event.get(name), str) and bool(event[name].strip())
    if name == "correlation":
        arguments = event.get("args")
        return isinstance(arguments, dict) and type(arguments.get(name)) is int
    value = event.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < LARGEST:
        return False
    return name != "dur" or value >= 0


def summarise(events: Sequence[Any], timed: Sequence[_Timed], floor_us: dict[str, float]) -> TraceBody:
    """Device times of each point's kernels, for one call. A point whose launches were not recorded has none.

    Raises CaptureFailed if that is every point.
    """
    by_range: dict[str | None, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    lacking: Counter[str] = Counter()
    for kernel in kernels(events, lacking):
        by_range[kernel.range][kernel.name].append(kernel.device_us)
    points = []
    for item in timed:
        seen = by_range.get(item.point.name, {})
        calls = item.calls * TRACED_ROUNDS
        shown = [TracedKernel(name, len(times) / calls, median(times)) for name, times in seen.items()]
        case, contender, clock = item.point.case, item.point.contender, item.point.clock
        points.append(TracedPoint(case, contender, clock, item.untraced_us, item.traced_us, shown))
    if not any(point.kernels for point in points):
        raise CaptureFailed(
            "torch's profiler saw no kernel of any point; is another profiler attached to this process?"
            f"{_left_out(lacking)}"
        )
    empty = [us for times in by_range.get(EMPTY, {}).values() for us in times]
    return TraceBody(points, floor_us, median(empty) if empty else None, dict(sorted(lacking.items())))


def _left_out(lacking: Counter[str]) -> str:
    said = ", ".join(f"{count} {what}" for what, count in sorted(lacking.items()))
    return f" Left out: {said}" if said else ""
