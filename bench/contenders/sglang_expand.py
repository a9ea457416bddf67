"""SGLang's csgmv B expand, present only to show a known fault of its kernel cache; it is no lookup.

Run at rank 16 and then at rank 64 in one process with SGLANG_USE_CUSTOM_TRITON_KERNEL_CACHE left on (its default),
the second result is wrong: the cache key omits the rank, so the kernel compiled for rank 16 is launched again.
"""

from __future__ import annotations

import numpy as np
import torch

from bench.case import ELEMENT_BYTES
from bench.contenders.base import KernelRef, Launch
from bench.contenders.sglang_peers import Peer
from bench.workload import Workload

HIDDEN = 4096
_B_TABLE_SEED = 1 << 20  # beyond any index set, whose number is the seed of its inputs

_PEER = Peer(
    backend=("chunked_backend", "ChunkedSgmvLoRABackend"),
    kernel=("chunked_sgmv_expand", "_chunked_lora_expand_kernel"),
    launcher="chunked_sgmv_lora_expand_forward",
)


class SglangExpand:
    """out[t] = scaling[s] * B[s] @ x[t] over the rank of slot s; x (tokens, rank), B (slots, HIDDEN, rank)."""

    name = "sglang_expand"
    tolerance = 2e-2  # a bfloat16 product

    def unavailable(self) -> str | None:
        return _PEER.unavailable()

    def setup(self, workload: Workload, *, static: bool) -> Launch:
        batch_info = _PEER.prepare(workload, static=static, scalings=_scalings(workload)).batch_info
        forward = _PEER.load_launcher()
        inputs = [_inputs(workload, k) for k in range(len(workload.index_sets))]
        b_table = _b_table(workload)
        slice_offsets = torch.tensor([0, HIDDEN], dtype=torch.int32, device=workload.device)
        return lambda k: forward(inputs[k], b_table, batch_info, slice_offsets, HIDDEN, None)

    def preparation(self, workload: Workload) -> None:
        return None

    def required_bytes(self, workload: Workload) -> int:
        """x, the B tables in use, and an output that is zero-filled, then read and written where there is an adapter.

        Batch metadata is negligible beside them.
        """
        ranks = workload.ranks[workload.token_slots()]
        used = np.unique(workload.seq_slots)
        read_x = int(ranks.sum())
        read_b = int(workload.ranks[used].sum()) * HIDDEN
        output = (workload.num_tokens + 2 * int((ranks > 0).sum())) * HIDDEN
        return (read_x + read_b + output) * ELEMENT_BYTES[workload.case.dtype]

    def kernels(self) -> list[KernelRef]:
        return _PEER.kernels()

    def oracle(self, workload: Workload, index_set: int) -> torch.Tensor:
        """The dense formula in float32, cast to the dtype of the case: (tokens, HIDDEN)."""
        x, b_table = _inputs(workload, index_set).float(), _b_table(workload).float()
        token_slots = torch.from_numpy(workload.token_slots()).to(workload.device)
        out = torch.zeros(workload.num_tokens, HIDDEN, device=workload.device)
        for slot, (rank, scaling) in enumerate(zip(workload.ranks.tolist(), _scalings(workload), strict=True)):
            of_slot = token_slots == slot
            out[of_slot] = scaling * (x[of_slot, :rank] @ b_table[slot, :, :rank].T)
        return out.to(workload.dtype)


def _scalings(workload: Workload) -> list[float]:
    return [1.0 + slot % 4 for slot in range(workload.num_slots)]


def _inputs(workload: Workload, index_set: int) -> torch.Tensor:
    return _random((workload.num_tokens, workload.case.rank), index_set, workload)


def _b_table(workload: Workload) -> torch.Tensor:
    return _random((workload.num_slots, HIDDEN, workload.case.rank), _B_TABLE_SEED, workload)


def _random(shape: tuple[int, ...], seed: int, workload: Workload) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device=workload.device, dtype=workload.dtype)
