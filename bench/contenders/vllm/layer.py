"""vLLM's embedding layer: the calls of VocabParallelEmbeddingWithLoRA.forward."""

from __future__ import annotations

import torch
from torch.nn import functional

from bench.contenders.base import Launch
from bench.contenders.vllm.lookup import VllmLookup, table_of
from bench.contenders.vllm.package import Kernels, VllmOp, scaled_b, token_slots, used_slots
from bench.model.case import ELEMENT_BYTES
from bench.workload import traffic
from bench.workload.tensors import Workload


class VllmLayer(VllmOp):
    """F.embedding of A, F.embedding of the base, and lora_expand of the first into the second."""

    parts = ("expand",)
    roundings = 3  # B times the scaling, the product with B, the sum

    def launch_on(self, workload: Workload, kernels: Kernels) -> Launch:
        ids, embedding = workload.index_sets, workload.weight("embedding")
        rows, b_table = table_of(workload), scaled_b(workload)
        offsets = token_slots(workload).long().clamp(min=0) * workload.case.vocab

        def launch(k: int) -> torch.Tensor:
            looked_up = functional.embedding(ids[k] + offsets, rows)
            return kernels.expand(looked_up[None], [b_table], functional.embedding(ids[k], embedding))

        return launch

    def required_bytes(self, workload: Workload) -> int:
        """Both lookups, then the looked-up rows of live tokens, B to the largest rank, the output again."""
        case, element, live = workload.case, ELEMENT_BYTES[workload.case.dtype], traffic.live_tokens(workload)
        base = workload.num_tokens * traffic.ID_BYTES + traffic.base_rows(workload) + traffic.written(workload)
        expand = live * case.rank + used_slots(workload) * case.hidden * case.rank + 2 * live * case.hidden
        return VllmLookup().required_bytes(workload) + base + expand * element
