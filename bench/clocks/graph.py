"""The graph clock: captures many launches in one CUDA graph and divides the event time of a replay by their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from bench.contenders.base import Launch

WARMUP_LAUNCHES = 3
SLOW_CALL_US = 50.0  # from here on a third of the nodes gives the same precision in a third of the time
L2_FLUSH_FACTOR = 4
QUEUES = 16  # streams: five were enough, torch gives out 32 in turn


@lru_cache
def streams(device: int) -> list[torch.cuda.Stream]:
    """The extra streams of this process: the first is for warming up, all of them fill the queues."""
    return [torch.cuda.Stream(device) for _ in range(QUEUES)]


def fill_queues() -> None:
    """Work on every stream, so that graphs run as they do in a server.

    Once a process has worked on more than a few streams, or captured a few graphs, each of its graph nodes takes 0.18
    us longer on an H100, until the GPU is switched to another process and back (docs/explanation/clocks.md). A server
    is in that state from its first minute on. Without this call, a point's time would depend on what ran before it.
    """
    device = torch.cuda.current_device()
    filler = _filler(device)
    torch.cuda.synchronize()
    for stream in streams(device):
        with torch.cuda.stream(stream):
            filler.add_(1)
    torch.cuda.synchronize()


@lru_cache
def _filler(device: int) -> torch.Tensor:
    return torch.zeros(1, dtype=torch.int32, device=torch.device("cuda", device))


@dataclass
class CapturedGraph:
    """A graph of `nodes` launches, with the outputs that its replays write, one for each index set it uses.

    The graph reads tensors that only `launch` keeps alive.
    """

    graph: torch.cuda.CUDAGraph
    nodes: int
    outputs: list[torch.Tensor]
    launch: Launch

    def poison(self) -> None:
        """Make every output wrong, so that only a replay can make it right."""
        for output in self.outputs:
            output.fill_(float("nan"))

    def replay(self) -> None:
        self.graph.replay()

    def once(self) -> CapturedGraph:
        """Another graph of the same launch, with one launch for each index set whose output is kept here."""
        sets = len(self.outputs)
        return capture(self.launch, index_sets=sets, nodes=sets, exact=True)


def capture(launch: Launch, *, index_sets: int, nodes: int, exact: bool = False) -> CapturedGraph:
    """Warm up on another stream and capture `nodes` launches that rotate over the index sets.

    A clearly slow launch is captured fewer times unless `exact` is set, because two graphs that are compared need equal
    nodes. Outputs live as long as the graph, so the launches of different sets write different memory.
    """
    stream = streams(torch.cuda.current_device())[0]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for index in range(WARMUP_LAUNCHES):
            launch(index % index_sets)
        call_us = event_us(lambda: [launch(0) for _ in range(3)]) / 3
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    # Eager calls include host time: only clearly slow kernels take fewer nodes.
    if not exact and call_us > SLOW_CALL_US * 3:
        nodes = max(1, nodes // 3)
    graph = torch.cuda.CUDAGraph()
    outputs: dict[int, torch.Tensor] = {}
    with torch.cuda.graph(graph, stream=stream):  # SGLang's triton_v2 keeps its scratch by stream
        for node in range(nodes):
            output = launch(node % index_sets)
            outputs.setdefault(node % index_sets, output)
    return CapturedGraph(graph, nodes, [outputs[index] for index in sorted(outputs)], launch)


def sample(captured: CapturedGraph, *, blocks: int, block_ms: float, flush: torch.Tensor | None) -> list[float]:
    """Time of one launch in us, for each block.

    With `flush`, a block is one replay after reading that buffer through L2.
    """
    fill_queues()
    _block(captured, 1, flush)  # not recorded: the first after a pause waits for the host
    torch.cuda.synchronize()
    replays = 1 if flush is not None else max(1, round(block_ms * 1000 / event_us(captured.replay)))
    events = [_block(captured, replays, flush) for _ in range(blocks)]
    torch.cuda.synchronize()
    return [start.elapsed_time(end) * 1000 / (replays * captured.nodes) for start, end in events]


def _block(
    captured: CapturedGraph, replays: int, flush: torch.Tensor | None
) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    """Enqueue a block; the events before and after it."""
    if flush is not None:
        torch.amax(flush)  # reads: leaves no dirty lines to be written back inside the timed block
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(replays):
        captured.replay()
    end.record()
    return start, end


def flush_buffer(l2_bytes: int, device: torch.device) -> torch.Tensor:
    """A buffer several times as large as the L2, to be read before a cold block."""
    return torch.zeros(L2_FLUSH_FACTOR * l2_bytes // 4, dtype=torch.float32, device=device)


def event_us(run: Callable[[], object]) -> float:
    """GPU time of whatever `run` enqueues, in us."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1000


def set_counts(nodes: int, limit: int) -> Sequence[int]:
    """How many index sets, up to `limit`, a graph of `nodes` launches can rotate over evenly."""
    return [count for count in range(1, min(nodes, limit) + 1) if nodes % count == 0]
