"""LoRA on lm_head in plain torch, adapter by adapter, and the base product of lm_head."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from bench.contenders.base import KernelRef, Launch, ProductOp
from bench.contenders.torch.layer import accumulate, product_bytes
from bench.model.case import ELEMENT_BYTES
from bench.workload import traffic
from bench.workload.tensors import Workload

ORACLE_ROWS = 16384  # of lm_head at a time, in float64


class TorchHead(ProductOp):
    """Gathers and shrinks the tokens of each adapter, then adds each product with B to its rows of the logits."""

    name = "torch_gather"
    in_place = True
    roundings = 3

    def unavailable(self) -> str | None:
        return None

    def setup(self, workload: Workload, *, static: bool) -> Launch:
        hidden, logits, a_table = workload.given("hidden_states"), workload.given("logits"), workload.weight("head_a")
        token_slots, rank, tokens = workload.token_slots(), workload.case.rank, workload.num_tokens
        used = np.unique(token_slots).tolist()
        groups = [(slot, torch.from_numpy(np.flatnonzero(token_slots == slot)).to(workload.device)) for slot in used]
        add = accumulate(workload)

        def launch(k: int) -> torch.Tensor:
            shrunk = hidden[k].new_empty(tokens, rank)
            for slot, rows in groups:
                shrunk.index_copy_(0, rows, hidden[k].index_select(0, rows) @ a_table[slot].T)
            return add(shrunk, logits[k])

        return launch

    def required_bytes(self, workload: Workload) -> int:
        """Hidden states gathered (read, written, read), A, shrunk rows copied likewise, and the products."""
        case = workload.case
        element = ELEMENT_BYTES[case.dtype]
        gathered = 3 * workload.num_tokens * (case.hidden + case.rank) * element
        return gathered + traffic.head_a_tables(workload) + product_bytes(workload)

    def kernels(self) -> list[KernelRef]:
        return []


class TorchExpand(ProductOp):
    """The products of B with given shrunk rows."""

    name = "torch_gather"
    in_place = True
    roundings = 2

    def unavailable(self) -> str | None:
        return None

    def setup(self, workload: Workload, *, static: bool) -> Launch:
        shrunk, logits, add = workload.given("shrunk"), workload.given("logits"), accumulate(workload)
        return lambda k: add(shrunk[k], logits[k])

    def required_bytes(self, workload: Workload) -> int:
        return product_bytes(workload)

    def kernels(self) -> list[KernelRef]:
        return []


class BaseHead(ProductOp):
    """F.linear with the weight of lm_head: the product that LoRA is added to."""

    name = "base"
    roundings = 2  # cuBLAS may sum parts in the dtype of the case

    def unavailable(self) -> str | None:
        return None

    def setup(self, workload: Workload, *, static: bool) -> Launch:
        hidden, weight = workload.given("hidden_states"), workload.weight("lm_head")
        return lambda k: functional.linear(hidden[k], weight)

    def required_bytes(self, workload: Workload) -> int:
        case = workload.case
        elements = case.vocab * case.hidden + workload.num_tokens * (case.hidden + case.vocab)
        return elements * ELEMENT_BYTES[case.dtype]

    def kernels(self) -> list[KernelRef]:
        return []

    def oracle(self, workload: Workload, index_set: int) -> torch.Tensor:
        rows = workload.given("hidden_states")[index_set].double()
        blocks = workload.weight("lm_head").split(ORACLE_ROWS)
        return torch.cat([rows @ block.double().T for block in blocks], dim=1)
