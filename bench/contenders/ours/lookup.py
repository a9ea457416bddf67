"""Our lookup kernel: in each storage, from token words or csgmv's segments, and as a programmatic dependent launch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from bench.contenders.base import KernelRef, Launch, LookupOp, Preparation
from bench.contenders.sglang.peers import DECODE_GRAPH_CAPACITY
from bench.model.case import ELEMENT_BYTES, Storage
from bench.workload import traffic
from bench.workload.tensors import SECTOR_BYTES, Workload
from csgmv_embed import EmbeddingBatch, embedding_lora_a

CHUNK_SIZE = 16  # only the segments variant reads chunks; SGLang's default


class CsgmvEmbed(LookupOp):
    """embedding_lora_a from `csgmv_embed`, output allocated by the call as in serving."""

    def __init__(self, storage: Storage, plan: Literal["tokens", "segments"], pdl: bool = False) -> None:
        self.storage = storage
        self.plan = plan
        self.pdl = pdl
        self.name = f"csgmv_embed{'_pdl' if pdl else '_segments' if plan == 'segments' else ''}-{storage}"

    def unavailable(self) -> str | None:
        return None

    def setup(self, workload: Workload, *, static: bool) -> Launch:
        return self._launch_on(batch_of(workload, static=static, segments=self.plan == "segments"), workload)

    @contextmanager
    def preparation(self, workload: Workload) -> Iterator[Preparation]:
        batch = batch_of(workload, static=True, segments=self.plan == "segments")
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

    def required_bytes(self, workload: Workload) -> int:
        """Ids, distinct rows in whole sectors, and the output. The plan is negligible beside them."""
        ids = workload.num_tokens * traffic.ID_BYTES
        return ids + a_row_bytes(workload, self.storage) + traffic.written(workload)

    def kernels(self) -> list[KernelRef]:
        return [KernelRef(("csgmv_embed.lookup", f"embedding_lora_a_{self.plan}_kernel"))]


def batch_of(
    workload: Workload,
    *,
    static: bool,
    segments: bool = False,
    tiles: bool = False,
    scalings: list[float] | None = None,
) -> EmbeddingBatch:
    """The workload's batch, in exactly sized buffers or in static ones of the capacity that a server captures.

    scalings: one for each slot, for ops that multiply. tiles: for ops of sites. The lookup takes neither, nor does the
    library of older commits.
    """
    case = workload.case
    plan: dict[str, Any] = {"segments": segments, "chunk_size": CHUNK_SIZE, "device": workload.device}
    if tiles:
        plan["tiles"] = True
    values: dict[str, Any] = {} if scalings is None else {"scalings": scalings}
    lens, slots, ranks = workload.seq_lens, workload.seq_slots, workload.ranks
    if not static:
        return EmbeddingBatch.build(lens, slots, ranks, **plan, **values)
    sequences = max(DECODE_GRAPH_CAPACITY, case.batch_size)
    allocated = EmbeddingBatch.allocate(
        max_tokens=sequences if case.phase == "decode" else case.num_tokens,
        max_sequences=sequences,
        slots=workload.num_slots,
        **plan,
    )
    allocated.refill(lens, slots, ranks, **values)
    return allocated


def a_row_bytes(workload: Workload, storage: Storage) -> int:
    """Bytes read of the A table: distinct rows in whole sectors; in a rank-major table, sectors that ids share."""
    element = ELEMENT_BYTES[workload.case.dtype]
    together = 1 if storage == "vocab_major" else SECTOR_BYTES // element
    ranks = workload.ranks[workload.distinct_rows(together) // workload.case.vocab].astype("int64")
    row_sectors = -(-ranks * element // SECTOR_BYTES) if storage == "vocab_major" else ranks
    return int(row_sectors.sum()) * SECTOR_BYTES
