"""vLLM's way: F.embedding in the flattened vocab-major table, with ids shifted to the rows of the token's slot."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from bench.contenders.base import KernelRef, Launch, LookupOp
from bench.model.case import ELEMENT_BYTES
from bench.workload.tensors import SECTOR_BYTES, Workload


class TorchGather(LookupOp):
    """Two torch ops, add and embedding. A third one clears what lies beyond a slot's rank.

    vLLM needs no third op because its tables are zero-padded. The table of a workload is random everywhere, so the
    third op runs if ranks differ or some requests have no adapter, and only then.
    """

    name = "torch_gather"

    def unavailable(self) -> str | None:
        return None

    def setup(self, workload: Workload, *, static: bool) -> Launch:
        """`static` has no effect: the offsets have a fixed address and no padding."""
        case, ids = workload.case, workload.index_sets
        rows = workload.table("vocab_major").transpose(1, 2).view(-1, case.rank)  # one row per (slot, id)
        slots = torch.from_numpy(workload.token_slots()).to(workload.device)
        offsets = slots.long() * case.vocab
        if not _needs_clearing(workload):
            return lambda k: functional.embedding(ids[k] + offsets, rows)
        token_ranks = torch.from_numpy(workload.ranks).to(workload.device)[slots]
        beyond = torch.arange(case.rank, device=workload.device) >= token_ranks[:, None]
        return lambda k: functional.embedding(ids[k] + offsets, rows).masked_fill_(beyond, 0)

    def preparation(self, workload: Workload) -> None:
        return None

    def required_bytes(self, workload: Workload) -> int:
        """Ids and offsets added into row numbers and read again (4 x 8 bytes a token), rows, output.

        Rows are read whole, rounded up to 32-byte sectors, whatever the rank of their slot. Clearing
        reads the output and a mask of one byte an element, and writes the output again.
        """
        case = workload.case
        element = ELEMENT_BYTES[case.dtype]
        slots = workload.token_slots().astype(np.int64)
        distinct = len(np.unique(slots * case.vocab + workload.index_sets[0].cpu().numpy()))
        row_bytes = -(-case.rank * element // SECTOR_BYTES) * SECTOR_BYTES
        output_passes = 3 * element + 1 if _needs_clearing(workload) else element
        return workload.num_tokens * (32 + case.rank * output_passes) + distinct * row_bytes

    def kernels(self) -> list[KernelRef]:
        return []


def _needs_clearing(workload: Workload) -> bool:
    return bool((workload.ranks != workload.case.rank).any())
