"""SGLang's default: the chunked embedding kernel on the segments of its csgmv backend."""

from __future__ import annotations

from typing import Any

from bench.contenders.base import Launch
from bench.contenders.sglang.peers import DEFAULT_CHUNK_SIZE, Peer, SglangLookup
from bench.workload.tensors import Workload


class SglangCsgmv(SglangLookup):
    """SGLang's csgmv backend. `chunk_size` is the server's --max-lora-chunk-size.

    For a small batch the backend may choose smaller chunks.
    """

    peer = Peer(
        backend=("chunked_backend", "ChunkedSgmvLoRABackend"),
        kernel=("chunked_embedding_lora_a", "_chunked_embedding_lora_a_kernel"),
        launcher="chunked_embedding_lora_a_forward",
    )

    def __init__(self, chunk_size: int = DEFAULT_CHUNK_SIZE) -> None:
        self.name = f"sglang_csgmv-chunk{chunk_size}"
        self.chunk_size = chunk_size

    def launch_on(self, backend: Any, workload: Workload) -> Launch:
        batch_info = backend.batch_info
        forward = self.peer.load_launcher()
        ids, table, vocab = workload.index_sets, workload.table("rank_major"), workload.case.vocab
        return lambda k: forward(ids[k], table, batch_info, vocab)
