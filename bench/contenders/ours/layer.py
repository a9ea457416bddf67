"""Our embedding layer: base row, A row and product with B in one kernel, or added to a base lookup by torch."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional

import csgmv_embed
from bench.contenders.base import KernelRef, Launch, ProductOp
from bench.contenders.ours.lookup import a_row_bytes, batch_of
from bench.model.case import ELEMENT_BYTES, Storage
from bench.workload import traffic
from bench.workload.tensors import Workload

TOO_OLD = "this csgmv_embed has no {}: expected a commit that has the op"


class CsgmvEmbedLayer(ProductOp):
    """embedding_lora on the batch of SGLang 0.5.16: static in decode, planned anew for every prefill.

    `_add`: F.embedding, then embedding_lora_add, as for a base layer that all-reduces in between. `_captured`: static
    buffers in prefill too, which SGLang captures from 0.5.18 on; the host then knows neither slots nor lengths.
    """

    roundings = 1  # what it is added to is of the dtype already

    def __init__(self, storage: Storage, form: Literal["", "_add", "_captured"] = "") -> None:
        self.storage, self.add, self.captured = storage, form == "_add", form == "_captured"
        self.name = f"csgmv_embed{form}-{storage}"

    def unavailable(self) -> str | None:
        op = "embedding_lora_add" if self.add else "embedding_lora"
        return None if hasattr(csgmv_embed, op) else TOO_OLD.format(op)

    def setup(self, workload: Workload, *, static: bool) -> Launch:
        static = static and (self.captured or workload.case.phase == "decode")
        batch = batch_of(workload, static=static, segments=True, scalings=workload.scalings)
        embedding, a_table, b_table = workload.weight("embedding"), workload.table(self.storage), workload.weight("b")
        ids, vocab = workload.index_sets, workload.case.vocab
        if not self.add:
            return lambda k: csgmv_embed.embedding_lora(ids[k], embedding, a_table, b_table, batch, vocab)

        def launch(k: int) -> torch.Tensor:
            base = functional.embedding(ids[k], embedding)
            return csgmv_embed.embedding_lora_add(base, ids[k], a_table, b_table, batch, vocab)

        return launch

    def required_bytes(self, workload: Workload) -> int:
        """Ids, distinct rows of both tables (A's in whole sectors), B of the slots in use, the output.

        With `add` the ids are read twice, and the output of each token with an adapter is read and written again.
        """
        element = ELEMENT_BYTES[workload.case.dtype]
        passes = 2 if self.add else 1
        again = 2 * traffic.live_tokens(workload) * workload.case.hidden * element if self.add else 0
        ids = passes * workload.num_tokens * traffic.ID_BYTES
        tables = traffic.base_rows(workload) + a_row_bytes(workload, self.storage) + traffic.b_tables(workload)
        return ids + tables + traffic.written(workload) + again

    def kernels(self) -> list[KernelRef]:
        return [KernelRef(("csgmv_embed.embedding", f"embedding_{part}_kernel")) for part in ("lora", "rows")]
