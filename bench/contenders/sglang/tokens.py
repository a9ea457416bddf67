"""SGLang's newest lookup: one program for each token, from a per-token slot array.

Only its triton_v2 backend uses it.
"""

from __future__ import annotations

from typing import Any

from bench.contenders.base import Launch
from bench.contenders.sglang.peers import Peer, SglangLookup
from bench.workload.tensors import Workload


class SglangTokens(SglangLookup):
    name = "sglang_tokens"
    zero_fills = False
    peer = Peer(
        backend=("triton_v2_backend", "TritonV2LoRABackend"),
        kernel=("embedding_lora_a", "_embedding_lora_a_tokens_kernel"),
        launcher="embedding_lora_a_tokens_fwd",
        since=(0, 5, 23),
    )

    def launch_on(self, backend: Any, workload: Workload) -> Launch:
        token_slots, ranks = backend.runner.token_slots, backend.runner.lora_ranks
        forward = self.peer.load_launcher()
        ids, table, vocab = workload.index_sets, workload.table("rank_major"), workload.case.vocab
        return lambda k: forward(ids[k], table, token_slots, ranks, vocab)
