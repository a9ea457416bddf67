"""Our kernel, in each storage, from token words or from csgmv's segments."""

from __future__ import annotations

from typing import Literal

import torch

from bench.case import ELEMENT_BYTES, Storage
from bench.contenders.base import KernelRef, Launch
from bench.contenders.sglang_peers import DECODE_GRAPH_CAPACITY
from bench.workload import SECTOR_BYTES, Workload
from csgmv_embed import EmbeddingBatch, embedding_lora_a

CHUNK_SIZE = 16  # only the segments variant reads chunks; SGLang's default


class CsgmvEmbed:
    """embedding_lora_a from `csgmv_embed`, output allocated by the call as in serving."""

    tolerance = 0.0

    def __init__(self, storage: Storage, plan: Literal["tokens", "segments"]) -> None:
        self.storage = storage
        self.plan = plan
        self.name = f"csgmv_embed{'_segments' if plan == 'segments' else ''}-{storage}"

    def unavailable(self) -> str | None:
        return None

    def setup(self, workload: Workload, *, static: bool) -> Launch:
        batch = self._batch(workload, static)
        table, vocab = workload.table(self.storage), workload.case.vocab

        def launch(index_set: int) -> torch.Tensor:
            return embedding_lora_a(workload.index_sets[index_set], table, batch, vocab)

        return launch

    def _batch(self, workload: Workload, static: bool) -> EmbeddingBatch:
        plan = (workload.seq_lens, workload.seq_slots, workload.ranks)
        segments = self.plan == "segments"
        if static:
            decode = workload.case.phase == "decode"
            sequences = max(DECODE_GRAPH_CAPACITY, workload.case.batch_size)
            batch = EmbeddingBatch.allocate(
                max_tokens=sequences if decode else workload.num_tokens,
                max_sequences=sequences,
                slots=workload.num_slots,
                segments=segments,
                chunk_size=CHUNK_SIZE,
                device=workload.device,
            )
            batch.refill(*plan)
        else:
            batch = EmbeddingBatch.build(*plan, segments=segments, chunk_size=CHUNK_SIZE, device=workload.device)
        return batch.without_token_words() if segments else batch

    def required_bytes(self, workload: Workload) -> int:
        """Ids (8 B a token), distinct rows in whole sectors, output; the plan is negligible beside them."""
        element = ELEMENT_BYTES[workload.case.dtype]
        together = 1 if self.storage == "vocab_major" else SECTOR_BYTES // element
        ranks = workload.ranks[workload.distinct_rows(together) // workload.case.vocab].astype("int64")
        row_sectors = -(-ranks * element // SECTOR_BYTES) if self.storage == "vocab_major" else ranks
        output = workload.num_tokens * workload.case.rank * element
        return workload.num_tokens * 8 + int(row_sectors.sum()) * SECTOR_BYTES + output

    def kernels(self) -> list[KernelRef]:
        return [KernelRef(("csgmv_embed.ops", f"embedding_lora_a_{self.plan}_kernel"))]

    def oracle(self, workload: Workload, index_set: int) -> torch.Tensor:
        return workload.oracle(index_set)
