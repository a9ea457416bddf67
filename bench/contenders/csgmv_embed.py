"""Our kernel, in each storage, from token words or from csgmv's segments, and as a programmatic dependent launch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from bench.case import ELEMENT_BYTES, Storage
from bench.contenders.base import KernelRef, Launch, Preparation
from bench.contenders.sglang_peers import DECODE_GRAPH_CAPACITY
from bench.workload import SECTOR_BYTES, Workload
from csgmv_embed import EmbeddingBatch, embedding_lora_a

CHUNK_SIZE = 16  # only the segments variant reads chunks; SGLang's default


class CsgmvEmbed:
    """embedding_lora_a from `csgmv_embed`, output allocated by the call as in serving."""

    tolerance = 0.0

    def __init__(self, storage: Storage, plan: Literal["tokens", "segments"], pdl: bool = False) -> None:
        self.storage = storage
        self.plan = plan
        self.pdl = pdl
        self.name = f"csgmv_embed{'_pdl' if pdl else '_segments' if plan == 'segments' else ''}-{storage}"

    def unavailable(self) -> str | None:
        return None

    def setup(self, workload: Workload, *, static: bool) -> Launch:
        return self._launch_on(self._allocated(workload) if static else self._built(workload), workload)

    @contextmanager
    def preparation(self, workload: Workload) -> Iterator[Preparation]:
        batch = self._allocated(workload)
        decode = workload.case.phase == "decode"  # then a scheduler knows that every length is 1
        lens = None if decode else workload.seq_lens.tolist()
        slots, ranks = workload.seq_slots.tolist(), workload.ranks.tolist()
        yield Preparation(lambda: batch.refill(lens, slots, ranks), self._launch_on(batch, workload))

    def _launch_on(self, batch: EmbeddingBatch, workload: Workload) -> Launch:
        batch = batch.without_token_words() if self.plan == "segments" else batch
        table, vocab, pdl = workload.table(self.storage), workload.case.vocab, self.pdl

        def launch(index_set: int) -> torch.Tensor:
            return embedding_lora_a(workload.index_sets[index_set], table, batch, vocab, pdl=pdl)

        return launch

    def _built(self, workload: Workload) -> EmbeddingBatch:
        return EmbeddingBatch.build(
            workload.seq_lens,
            workload.seq_slots,
            workload.ranks,
            segments=self.plan == "segments",
            chunk_size=CHUNK_SIZE,
            device=workload.device,
        )

    def _allocated(self, workload: Workload) -> EmbeddingBatch:
        """Static buffers of the capacity a serving engine captures with, holding this batch."""
        case = workload.case
        sequences = max(DECODE_GRAPH_CAPACITY, case.batch_size)
        batch = EmbeddingBatch.allocate(
            max_tokens=sequences if case.phase == "decode" else case.num_tokens,
            max_sequences=sequences,
            slots=workload.num_slots,
            segments=self.plan == "segments",
            chunk_size=CHUNK_SIZE,
            device=workload.device,
        )
        batch.refill(workload.seq_lens, workload.seq_slots, workload.ranks)
        return batch

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
