"""The graph clock: many launches captured in one CUDA graph, event time of a replay divided by their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from bench.contenders.base import Launch

WARMUP_LAUNCHES = 3
SLOW_CALL_US = 50.0  # from here on a third of the nodes gives the same precision in a third of the time
L2_FLUSH_FACTOR = 4


@lru_cache
def warmup_stream(device: int) -> torch.cuda.Stream:
    """The one stream on which this process warms up before captures.

    A process that has worked on more than four streams pays 0.18 us for every graph node from then on (docs/method.md),
    so a stream of its own for each capture would make a point's time depend on how many came before it.
    """
    return torch.cuda.Stream(device)


@dataclass
class CapturedGraph:
    """A graph of `nodes` launches and the outputs its replays write, one for each index set it uses."""

    graph: torch.cuda.CUDAGraph
    nodes: int
    outputs: list[torch.Tensor]

    def poison(self) -> None:
        """Make every output wrong, so that only a replay can make it right."""
        for output in self.outputs:
            output.fill_(float("nan"))

    def replay(self) -> None:
        self.graph.replay()


def capture(launch: Launch, *, index_sets: int, nodes: int, exact: bool = False) -> CapturedGraph:
    """Warm up beside the current stream and capture `nodes` launches that rotate over the index sets.

    A clearly slow launch is captured fewer times unless `exact`: two graphs that are compared have equal nodes.
    Outputs are kept alive as long as the graph, so the launches of different sets write different memory.
    """
    stream = warmup_stream(torch.cuda.current_device())
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
    with torch.cuda.graph(graph):
        for node in range(nodes):
            output = launch(node % index_sets)
            outputs.setdefault(node % index_sets, output)
    return CapturedGraph(graph, nodes, [outputs[index] for index in sorted(outputs)])


def sample(captured: CapturedGraph, *, blocks: int, block_ms: float, flush: torch.Tensor | None) -> list[float]:
    """Time of one launch, us, by block. With `flush`, each block is one replay after reading that buffer through L2."""
    captured.replay()
    torch.cuda.synchronize()
    replay_us = event_us(captured.replay)
    replays = 1 if flush is not None else max(1, round(block_ms * 1000 / replay_us))
    events = []
    for _ in range(blocks):
        if flush is not None:
            torch.amax(flush)  # reads: leaves no dirty lines to be written back inside the timed block
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(replays):
            captured.replay()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) * 1000 / (replays * captured.nodes) for start, end in events]


def flush_buffer(l2_bytes: int, device: torch.device) -> torch.Tensor:
    """A buffer several times the L2, to be read before a cold block."""
    return torch.zeros(L2_FLUSH_FACTOR * l2_bytes // 4, dtype=torch.float32, device=device)


def event_us(run: Callable[[], object]) -> float:
    """GPU time of whatever `run` enqueues, us."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1000


def set_counts(nodes: int, limit: int) -> Sequence[int]:
    """How many index sets a graph of `nodes` can rotate over evenly, up to limit."""
    return [count for count in range(1, min(nodes, limit) + 1) if nodes % count == 0]
