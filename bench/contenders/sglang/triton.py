"""SGLang's fallback: the embedding kernel of its triton backend. Each request is one segment, in the original order."""

from __future__ import annotations

from typing import Any

from bench.contenders.base import Launch
from bench.contenders.sglang.peers import Peer, SglangLookup
from bench.workload.tensors import Workload


class SglangTriton(SglangLookup):
    name = "sglang_triton"
    peer = Peer(
        backend=("triton_backend", "TritonLoRABackend"),
        kernel=("embedding_lora_a", "_embedding_lora_a_kernel"),
        launcher="embedding_lora_a_fwd",
    )

    def launch_on(self, backend: Any, workload: Workload) -> Launch:
        batch_info = backend.batch_info
        if batch_info is getattr(backend, "prefill_cuda_graph_batch_info", None):
            batch_info = backend.sgemm_batch_info or batch_info  # the engine's choice in a prefill graph (0.5.20)
        forward = self.peer.load_launcher()
        ids, table, vocab = workload.index_sets, workload.table("rank_major"), workload.case.vocab
        return lambda k: forward(ids[k], table, batch_info, vocab)
