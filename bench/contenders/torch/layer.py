"""The embedding layer in plain torch, with LoRA adapter by adapter, and the base lookup alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from bench.contenders.base import KernelRef, Launch, ProductOp
from bench.model.case import ELEMENT_BYTES
from bench.workload import traffic
from bench.workload.tensors import Workload

Accumulate = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class TorchLayer(ProductOp):
    """F.embedding of base and of the flattened A table, then a product for each adapter, added to its rows."""

    name = "torch_gather"
    roundings = 2

    def unavailable(self) -> str | None:
        return None

    def setup(self, workload: Workload, *, static: bool) -> Launch:
        """`static` has no effect: row numbers have fixed addresses and no padding."""
        case, ids, embedding = workload.case, workload.index_sets, workload.weight("embedding")
        rows = workload.table("vocab_major").transpose(1, 2).view(-1, case.rank)  # one row per (slot, id)
        table_rows = torch.from_numpy(workload.token_slots()).to(workload.device).long() * case.vocab
        add = accumulate(workload)

        def launch(k: int) -> torch.Tensor:
            base = functional.embedding(ids[k], embedding)
            return add(functional.embedding(ids[k] + table_rows, rows), base)

        return launch

    def required_bytes(self, workload: Workload) -> int:
        """Two lookups (row numbers added, written and read), then the products; see product_bytes."""
        element, tokens = ELEMENT_BYTES[workload.case.dtype], workload.num_tokens
        lookups = traffic.base_rows(workload) + traffic.written(workload) + traffic.a_rows(workload)
        looked_up = tokens * workload.case.rank * element
        return tokens * 5 * traffic.ID_BYTES + lookups + looked_up + product_bytes(workload)

    def kernels(self) -> list[KernelRef]:
        return []


class BaseLayer(ProductOp):
    """F.embedding alone: a layer without LoRA, and the floor of a batch without an adapter."""

    name = "base"
    roundings = 0

    def tolerance(self, case: object) -> float:
        return 0.0

    def unavailable(self) -> str | None:
        return None

    def setup(self, workload: Workload, *, static: bool) -> Launch:
        ids, embedding = workload.index_sets, workload.weight("embedding")
        return lambda k: functional.embedding(ids[k], embedding)

    def required_bytes(self, workload: Workload) -> int:
        return workload.num_tokens * traffic.ID_BYTES + traffic.base_rows(workload) + traffic.written(workload)

    def kernels(self) -> list[KernelRef]:
        return []

    def oracle(self, workload: Workload, index_set: int) -> torch.Tensor:
        return workload.weight("embedding")[workload.index_sets[index_set]]


def accumulate(workload: Workload) -> Accumulate:
    """Adds scaling * B[slot] @ rows to base, adapter by adapter: (rows (tokens, rank), base) -> base."""
    token_slots, b_table = workload.token_slots(), workload.weight("b")
    groups = []
    for slot in np.unique(workload.seq_slots).tolist():
        rank = int(workload.ranks[slot])
        if rank:
            rows = torch.from_numpy(np.flatnonzero(token_slots == slot)).to(workload.device)
            groups.append((rows, rank, b_table[slot, :, :rank].T, workload.scalings[slot]))

    def add(inputs: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        for rows, rank, b_transposed, scaling in groups:
            of_slot = inputs.index_select(0, rows)[:, :rank]
            total = torch.addmm(base.index_select(0, rows), of_slot, b_transposed, alpha=scaling)
            base.index_copy_(0, rows, total)
        return base

    return add


def product_bytes(workload: Workload) -> int:
    """Bytes of `accumulate`: rows and base gathered (read, written, read), B, sums written and copied back."""
    element = ELEMENT_BYTES[workload.case.dtype]
    inputs = 3 * traffic.live_ranks(workload) * element
    outputs = 6 * traffic.live_tokens(workload) * workload.out_features * element
    return inputs + traffic.b_tables(workload) + outputs
