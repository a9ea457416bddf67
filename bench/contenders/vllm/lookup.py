"""vLLM's lookup: F.embedding in its zero-padded table of rows (slot, id).

Its metadata of a batch are made on the host.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from bench.contenders.base import KernelRef, Launch, LookupOp, Preparation
from bench.contenders.vllm.package import padded, token_slots, unavailable
from bench.model.case import ELEMENT_BYTES
from bench.workload.tensors import SECTOR_BYTES, Workload

WRAPPER = "vllm.lora.punica_wrapper.punica_gpu"
LAYERS = "vllm.lora.layers"


class VllmLookup(LookupOp):
    """VocabParallelEmbeddingWithLoRA's add and F.embedding. Tokens without adapter read slot 0; the result is unused.

    The prepare clock times PunicaWrapperGPU.update_metadata, of everything that vLLM's kernels read of a batch. vLLM
    skips it if the mapping equals that of the previous step. It needs more of vLLM's own requirements than the kernels
    do.
    """

    name = "vllm"

    def unavailable(self) -> str | None:
        return unavailable([], [])

    def setup(self, workload: Workload, *, static: bool) -> Launch:
        """`static` has no effect: the offsets have a fixed address and no padding."""
        return _lookup(workload, token_slots(workload).long().clamp(min=0) * workload.case.vocab)

    @contextmanager
    def preparation(self, workload: Workload) -> Iterator[Preparation]:
        slots, tokens, vocab = workload.case.adapters, workload.num_tokens, workload.case.vocab
        config = SimpleNamespace(max_loras=slots, specialize_active_lora=False)
        wrapper: Any = importlib.import_module(WRAPPER).PunicaWrapperGPU(
            tokens, len(workload.seq_lens), workload.device, lora_config=config
        )
        mapping_class = importlib.import_module(LAYERS).LoRAMapping
        ids = [slot + 1 if rank else 0 for slot, rank in enumerate(workload.ranks.tolist())]  # of adapters; 0 is none
        requests = [ids[slot] for slot in workload.seq_slots.tolist()]
        of_tokens = [ids[slot] for slot in workload.token_slots().tolist()]
        in_slots = [adapter or None for adapter in ids[:slots]]
        prefill = workload.case.phase != "decode"

        def prepare() -> None:
            mapping = mapping_class(tuple(of_tokens), tuple(requests), is_prefill=prefill)
            wrapper.update_metadata(mapping, in_slots, slots, vocab)

        yield Preparation(prepare, _lookup(workload, wrapper._embeddings_indices[:tokens]))

    def required_bytes(self, workload: Workload) -> int:
        """Ids and offsets added into row numbers and read again (4 x 8 bytes a token), whole rows, output."""
        case = workload.case
        element = ELEMENT_BYTES[case.dtype]
        slots = workload.token_slots().astype(np.int64)
        slots[workload.ranks[slots] == 0] = 0
        distinct = len(np.unique(slots * case.vocab + workload.index_sets[0].cpu().numpy()))
        row_bytes = -(-case.rank * element // SECTOR_BYTES) * SECTOR_BYTES
        return workload.num_tokens * (32 + case.rank * element) + distinct * row_bytes

    def kernels(self) -> list[KernelRef]:
        return []

    def result(self, workload: Workload, output: torch.Tensor) -> torch.Tensor:
        return output.masked_fill(token_slots(workload)[:, None] < 0, 0)


def table_of(workload: Workload) -> torch.Tensor:
    """vLLM's A table, flat: a row (rank,) for every slot and id, zero beyond the slot's rank."""
    by_row = padded(workload, workload.table("vocab_major"), 0).transpose(1, 2)
    return by_row.reshape(-1, workload.case.rank)


def _lookup(workload: Workload, offsets: torch.Tensor) -> Launch:
    ids, rows = workload.index_sets, table_of(workload)
    return lambda k: functional.embedding(ids[k] + offsets, rows)
