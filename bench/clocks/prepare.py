"""The prepare clock: host time to plan a batch and enqueue its transfer to the device.

Every server pays it before each forward pass, whether the kernels run eagerly or in a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns

import torch

WARMUP_CALLS = 5


def sample(prepare: Callable[[], object], *, calls: int, blocks: int) -> list[float]:
    """Host time of one call in us, for each block of `calls` calls. The device is idle at the start of each block."""
    for _ in range(WARMUP_CALLS):
        prepare()
    total_us = []
    for _ in range(blocks):
        torch.cuda.synchronize()
        start = perf_counter_ns()
        for _ in range(calls):
            prepare()
        total_us.append((perf_counter_ns() - start) / 1000 / calls)
    torch.cuda.synchronize()
    return total_us
