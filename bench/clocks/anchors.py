"""Anchors, which no change of this repository's code can move: an empty kernel, a device copy, a plain gather.

The first two are floors of the lookup. All three tell whether the machine behaved alike in two sessions.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

from statistics import median

import torch
import triton

from bench.clocks import eager, graph
from bench.contenders.base import Launch
from bench.model.records import Anchor

COPY_BYTES = 1 << 30
GATHER_ROWS, GATHER_WIDTH = 1 << 20, 256
GATHER_TOKENS = 4096
BLOCKS = 9


@triton.jit
def empty_kernel(pointer):
    """Does nothing, so that its time is the cost of a launch."""


def empty_launch() -> Launch:
    """A launch of one empty kernel."""
    target = torch.empty(1, device="cuda")

    def launch(_: int) -> torch.Tensor:
        empty_kernel[(1,)](target)
        return target

    return launch


def capture_empty(nodes: int) -> graph.CapturedGraph:
    """A graph of `nodes` empty kernels: the floor of all graphs, timed beside each of them."""
    return graph.capture(empty_launch(), index_sets=1, nodes=nodes)


def empty_graph_us(empty: graph.CapturedGraph, block_ms: float, blocks: int = BLOCKS) -> float:
    """Time of one node of an empty graph now, in us."""
    return median(graph.sample(empty, blocks=blocks, block_ms=block_ms, flush=None))


def empty_eager_us(calls: int) -> float:
    """Time of one empty kernel launched eagerly, back to back, in us."""
    return median(eager.sample(empty_launch(), index_sets=1, calls=calls, blocks=BLOCKS)[0])


def copy_bytes_per_us() -> float:
    """Bytes read plus written per us by a device-to-device copy of 1 GiB, the best of several.

    Timed with events around eager copies. In a graph a copy becomes a memcpy node, which runs slower (2.7 against 4.2
    TB/s on an H200).
    """
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * COPY_BYTES / min(graph.event_us(lambda: target.copy_(source)) for _ in range(BLOCKS))


def gather_us() -> float:
    """Time of torch.index_select of 4096 random rows of 512 bytes in a graph, in us."""
    generator = torch.Generator("cuda").manual_seed(0)
    table = torch.empty(GATHER_ROWS, GATHER_WIDTH, dtype=torch.bfloat16, device="cuda").normal_(generator=generator)
    sets = [torch.randint(0, GATHER_ROWS, (GATHER_TOKENS,), device="cuda", generator=generator) for _ in range(20)]
    captured = graph.capture(lambda k: torch.index_select(table, 0, sets[k]), index_sets=20, nodes=60)
    return median(graph.sample(captured, blocks=BLOCKS, block_ms=1.0, flush=None))


def measure_anchors(empty: graph.CapturedGraph, block_ms: float, calls: int) -> list[Anchor]:
    """Measure all anchors in this process."""
    return [
        Anchor("empty_kernel_graph", "us", [empty_graph_us(empty, block_ms)]),
        Anchor("empty_kernel_eager", "us", [empty_eager_us(calls)]),
        Anchor("copy_bandwidth", "bytes/us", [copy_bytes_per_us()]),
        Anchor("gather", "us", [gather_us()]),
    ]
