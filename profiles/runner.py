"""The profiled program: `python -m profiles.runner [--launches N] [--replays N] [--seed N] POINT...`.

Opens a capture range (cudaProfilerStart), then for each point, named as in its NVTX range, the ranges

    POINT / setup     tables, ids and buffers, and the launch made from them
    POINT / warmup    first launches and, for the graph clock, the capture
    POINT / verify    against the oracle: a wrong kernel is not worth a profile
    POINT / flush     only for a cold case: the L2 is read over
    POINT / sample    the launches to look at, and the wait for them

all of the domain `csgmv_bench`. The range is open before any capture, or a tool could not tell where a graph's nodes
come from. Takes no times. Exit status 1 if a point cannot be launched or is wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec
import torch

from bench import contenders
from bench.clocks import graph, markers
from bench.contenders.base import Contender, Launch
from bench.execute import measure
from bench.model import config as configuration
from bench.model.config import ConfigError, PlannedPoint
from bench.workload.tensors import Workload
from profiles.target import Target, parse_point

EAGER_WARMUPS = 3
KERNEL_CACHE = "SGLANG_USE_CUSTOM_TRITON_KERNEL_CACHE"  # its key omits the rank: off, as in the suite's workers


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse and run. A wrong argument gives one line and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m profiles.runner", description=__doc__.splitlines()[0])
    parser.add_argument("points", nargs="+", metavar="POINT", help="CONTENDER|CLOCK|NAME=VALUE|...")
    for name in ("launches", "replays", "seed"):
        parser.add_argument(f"--{name}", type=int, default=1)
    told = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit("profiles.runner: needs an NVIDIA GPU and none was found")
    try:
        points = tuple(parse_point(name) for name in told.points)
        target = Target("runner", points, told.launches, told.replays, told.seed)
        run(target, torch.device("cuda", torch.cuda.current_device()))
    except ConfigError as error:
        parser.error(str(error))
    except measure.NotMeasured as error:
        sys.exit(f"profiles.runner: {error.status}: {error.reason}")


def run(target: Target, device: torch.device) -> None:
    """Launch every point in the capture range. Raises NotMeasured for the first that cannot be launched or is wrong."""
    os.environ.setdefault(KERNEL_CACHE, "0")
    settings = configuration.load().measure
    bench = measure.Bench(device, msgspec.structs.replace(settings, seed=target.seed), process=0)
    if device.type == "cuda":
        bench.l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    for point in target.points:
        contender = contenders.build(point.contender, point.case.op, point.case.site)
        if reason := contenders.unavailable(contender):  # imports the peer outside the range
            raise measure.NotMeasured("skipped", f"{point.contender}: {reason}")
    with capture_range(device):
        for index, point in enumerate(target.points):
            with markers.span(point.name, payload=index):
                sample = _prepared(bench, point, target.launches)
                for _ in range(target.replays):
                    sample()


@contextmanager
def capture_range(device: torch.device) -> Iterator[None]:
    """The range that a tool records if it waits for cudaProfilerStart."""
    _wait(device)
    torch.cuda.profiler.start()
    try:
        yield
    finally:
        _wait(device)
        torch.cuda.profiler.stop()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _prepared(bench: measure.Bench, point: PlannedPoint, launches: int) -> Callable[[], None]:
    """Set up, warm up and verify a point; the returned call samples it once and waits for it.

    Raises NotMeasured if its result is wrong.
    """
    contender = contenders.build(point.contender, point.case.op, point.case.site)
    with markers.span("setup"):
        workload = bench.workload(point.case, launches)
        launch = contender.setup(workload, static=point.clock == "graph")
    enqueue = (_graph if point.clock == "graph" else _eager)(contender, workload, launch, launches)
    flush = graph.flush_buffer(bench.l2_bytes, bench.device) if point.case.cache == "cold" else None

    def sample() -> None:
        if flush is not None:
            with markers.span("flush"):
                torch.amax(flush)
                _wait(bench.device)
        with markers.span("sample"):
            enqueue()
            _wait(bench.device)

    return sample


def _graph(contender: Contender, workload: Workload, launch: Launch, launches: int) -> Callable[[], object]:
    with markers.span("warmup"):
        captured = graph.capture(launch, index_sets=launches, nodes=launches, exact=True)
    with markers.span("verify"):
        measure.verify_graph(contender, workload, captured)
    return captured.replay


def _eager(contender: Contender, workload: Workload, launch: Launch, launches: int) -> Callable[[], object]:
    with markers.span("warmup"):
        for index in range(EAGER_WARMUPS):
            launch(index % launches)
    with markers.span("verify"):
        measure.verify_eager(contender, workload, launch)
    return lambda: [launch(index) for index in range(launches)]


if __name__ == "__main__":
    main()
