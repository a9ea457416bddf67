"""The worker's side of isolate.py: `python -m bench.execute.worker READ_FD WRITE_FD`."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from math import isfinite
from multiprocessing.connection import Connection

import msgspec
import torch

from bench import contenders
from bench.clocks.work.quick import quicken
from bench.execute import measure
from bench.execute.isolate import Answer, Ask, Hello, Start
from bench.model.environment import attached_profiler, collect_environment
from bench.model.records import Anchor, Point, Status
from bench.model.sources import hash_library, library_folder


def serve(receiver: Connection, sender: Connection) -> None:
    """Say hello, then answer until the parent closes the pipe or the GPU context is lost."""
    start = msgspec.json.decode(receiver.recv_bytes(), type=Start)
    on_gpu = start.kind == "gpu"
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    if start.kind == "interpret":
        quicken()
    contenders.load(start.contenders)
    gc.freeze()  # half a million objects of the imports, which a collection between points need not walk
    if start.kind == "compile":
        _accept_host_tensors()
    bench = measure.Bench(device, start.settings, start.process)
    env = collect_environment(device.type)
    if (library := library_folder()) is not None:
        env.volatile["library_sha256"] = hash_library(library.parent)  # of the files that were imported
    anchors = _anchors(bench) if on_gpu else []
    profiler = attached_profiler() if on_gpu else None
    with _capture_range() if profiler else nullcontext():
        sender.send_bytes(msgspec.json.encode(Hello(env, [] if profiler else anchors)))
        _serve(bench, profiler, receiver, sender)


def _accept_host_tensors() -> None:
    """Let the library launch on the CPU, where kernels are only compiled."""
    library = library_folder()
    if library is None:
        return
    name = "csgmv_embed.ops" if (library / "ops.py").exists() else "csgmv_embed.launch.checks"
    vars(importlib.import_module(name))["accept_host_tensors"] = True  # older commits have it in ops


def _serve(bench: measure.Bench, profiler: str | None, receiver: Connection, sender: Connection) -> None:
    while True:
        try:
            ask = msgspec.json.decode(receiver.recv_bytes(), type=Ask)
        except EOFError:
            return
        answer = _answer(bench, ask)
        if profiler:
            _forget_times(answer.point, profiler)
        sender.send_bytes(msgspec.json.encode(answer))
        if answer.lost:
            return


@contextmanager
def _capture_range() -> Iterator[None]:
    """What a profiler told to wait for cudaProfilerStart records; open before any graph is captured."""
    torch.cuda.profiler.start()
    try:
        yield
    finally:
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def _forget_times(point: Point, profiler: str) -> None:
    """A profiled run yields no timing: the point was verified, and its record says why it has no rounds."""
    if point.status == "ok" and point.clock != "work":
        point.status, point.reason = "skipped", f"ran under {profiler}: verified, and not timed"
        point.rounds, point.floor_us = [], []


def _anchors(bench: measure.Bench) -> list[Anchor]:
    from bench.clocks.anchors import capture_empty, measure_anchors

    settings = bench.settings
    bench.empty_graph = capture_empty(settings.nodes)
    anchors = measure_anchors(bench.empty_graph, settings.block_ms, settings.eager_calls)
    bench.eager_floor_us = next(anchor.values[0] for anchor in anchors if anchor.name == "empty_kernel_eager")
    bench.l2_bytes = torch.cuda.get_device_properties(bench.device).L2_cache_size
    return anchors


def _answer(bench: measure.Bench, ask: Ask) -> Answer:
    if ask.counted is not None:
        return Answer(_compiled(bench, ask.counted))
    try:
        point = measure.measure(bench, ask.planned, ask.index)
        _check_times(point)
        return Answer(point)
    except torch.OutOfMemoryError as error:
        point = _failed(ask, "error", f"out of GPU memory: {_first_line(error)}")
    except Exception as error:  # whatever a contender raises is its result
        point = _failed(ask, "error", f"{type(error).__name__}: {_first_line(error)}")
    gc.collect()
    if bench.device.type != "cuda":
        return Answer(point)
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as error:
        point.status = "crashed"
        point.reason = f"GPU context lost: {_first_line(error)}"
        return Answer(point, lost=True)
    return Answer(point)


def _check_times(point: Point) -> None:
    """Raises ValueError for what is no time: a message would carry a NaN as null, and an estimate takes logarithms."""
    blocks = [block for item in point.rounds for block in (*item.blocks_us, *(item.host_blocks_us or ()))]
    for time_us in (*blocks, *point.floor_us):
        if not (isfinite(time_us) and time_us > 0):
            raise ValueError(f"measured a time of {time_us} us; expected a finite one above 0")


def _compiled(bench: measure.Bench, point: Point) -> Point:
    assert point.work is not None
    try:
        measure.compile_point(bench, point)
    except Exception as error:  # counts stand without compiled figures, and the record says why there are none
        point.work.compiled_reason = f"{type(error).__name__}: {_first_line(error)}"
    return point


def _failed(ask: Ask, status: Status, reason: str) -> Point:
    planned = ask.planned
    return Point(planned.case, planned.contender, planned.clock, ask.index, status, reason)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1]), writable=False), Connection(int(sys.argv[2]), readable=False))
