"""The eager clock: back-to-back calls, as a server without CUDA graphs makes them.

It takes two figures for each block: the time of a call until the GPU is done (whichever of host and GPU is slower), and
the host time to enqueue it.
"""

from __future__ import annotations

from time import perf_counter_ns

import torch

from bench.contenders.base import Launch

WARMUP_CALLS = 20


def sample(launch: Launch, *, index_sets: int, calls: int, blocks: int) -> tuple[list[float], list[float]]:
    """(time of a call, host time of a call) in us, for each block of `calls` calls."""
    for call in range(WARMUP_CALLS):
        launch(call % index_sets)
    torch.cuda.synchronize()
    total_us, host_us = [], []
    for _ in range(blocks):
        start = perf_counter_ns()
        for call in range(calls):
            launch(call % index_sets)
        enqueued = perf_counter_ns()
        torch.cuda.synchronize()
        done = perf_counter_ns()
        host_us.append((enqueued - start) / 1000 / calls)
        total_us.append((done - start) / 1000 / calls)
    return total_us, host_us
