"""SGLang's LoRA on lm_head in a decode step: the calls of ParallelLMHeadWithLoRA.apply_lora, and its expand alone.

Ranks mix in a process here, and the keys of SGLang's own kernel cache omit the rank, which breaks csgmv's kernels: run
at rank 16 and then at rank 64, the expand launches the kernel compiled for rank 16 again, and its result is wrong.
isolate.py switches that cache off in every worker. The profile `faults` switches it on and shows the fault.
"""

from __future__ import annotations

from typing import Any

import torch

from bench.contenders.base import Launch
from bench.contenders.sglang.ops import SglangOp, boundaries
from bench.model.case import ELEMENT_BYTES
from bench.workload import traffic
from bench.workload.tensors import Workload


class SglangHead(SglangOp):
    """Shrink, then expand into the given logits."""

    parts = ("shrink", "expand")
    in_place = True
    roundings = 3

    def launch_on(self, backend: Any, workload: Workload) -> Launch:
        hidden, logits = workload.given("hidden_states"), workload.given("logits")
        a_table, b_table, bounds = workload.weight("head_a"), workload.weight("b"), boundaries(workload)

        def launch(k: int) -> torch.Tensor:
            shrunk = backend.run_lora_a_sgemm(hidden[k], a_table)
            out: torch.Tensor = backend.run_lora_b_sgemm(x=shrunk, weights=b_table, base_output=logits[k], **bounds)
            return out

        return launch

    def required_bytes(self, workload: Workload) -> int:
        """The least bytes of the op, and the shrunk rows written and read."""
        return traffic.minimum(workload) + 2 * traffic.live_ranks(workload) * ELEMENT_BYTES[workload.case.dtype]


class SglangExpand(SglangOp):
    """The expand of given shrunk rows into the given logits."""

    parts = ("expand",)
    in_place = True
    roundings = 2

    def launch_on(self, backend: Any, workload: Workload) -> Launch:
        shrunk, logits, b_table = workload.given("shrunk"), workload.given("logits"), workload.weight("b")
        bounds = boundaries(workload)
        run = backend.run_lora_b_sgemm
        return lambda k: run(x=shrunk[k], weights=b_table, base_output=logits[k], **bounds)

    def required_bytes(self, workload: Workload) -> int:
        return traffic.minimum(workload)
