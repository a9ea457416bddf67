"""SGLang's embedding layer: the calls of VocabParallelEmbeddingWithLoRA.forward on its own backend object.

`python -m bench layer` runs the class itself. That needs a process group and a package of kernels, which these calls do
without.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from bench.contenders.base import Launch
from bench.contenders.sglang.ops import SglangOp, boundaries
from bench.contenders.sglang.peers import rank_major_bytes
from bench.model.case import ELEMENT_BYTES
from bench.workload import traffic
from bench.workload.tensors import Workload


class SglangLayer(SglangOp):
    """Masking of added ids, base lookup, A lookup, B expand into the base: about six launches."""

    parts = ("lookup", "expand")
    roundings = 2

    def launch_on(self, backend: Any, workload: Workload) -> Launch:
        embedding, a_table, b_table = workload.weight("embedding"), workload.table("rank_major"), workload.weight("b")
        ids, vocab, bounds = workload.index_sets, workload.case.vocab, boundaries(workload)

        def launch(k: int) -> torch.Tensor:
            added = ids[k] > vocab - 1
            base = functional.embedding(ids[k].masked_fill(added, 0), embedding)
            looked_up = backend.run_lora_a_embedding(
                input_ids=ids[k], weights=a_table, vocab_size=vocab, extra_embeddings=None
            )
            out: torch.Tensor = backend.run_lora_b_sgemm(x=looked_up, weights=b_table, base_output=base, **bounds)
            return out

        return launch

    def required_bytes(self, workload: Workload) -> int:
        """Masking (ids read twice and written, masks written and read), base lookup, A lookup, expand into the base."""
        element = ELEMENT_BYTES[workload.case.dtype]
        masking = workload.num_tokens * (3 * traffic.ID_BYTES + 2)
        base = workload.num_tokens * traffic.ID_BYTES + traffic.base_rows(workload) + traffic.written(workload)
        lookup = rank_major_bytes(workload, zero_fills=True)
        again = 2 * traffic.live_tokens(workload) * workload.case.hidden * element
        return masking + base + lookup + traffic.live_ranks(workload) * element + traffic.b_tables(workload) + again
