"""The first design of SGLang's pull request 14805: its triton backend's lookup, on a second batch info beside csgmv's.

csgmv's own batch info has its segments in the order of the slots; that kernel reads one segment a request, in the order
of the tokens. The suite's contender `sglang_triton` times the same kernel on the batch info of its own backend.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import torch

from csgmv_embed.sglang.targets import Release


def second_batch_info(backend: Any, lens: list[int], slots: list[int]) -> Any:
    """A LoRABatchInfo in the order of the requests, from the one csgmv prepared last. lens, slots: of each request."""
    info = backend.batch_info
    like = info.seg_indptr
    lengths = torch.tensor(lens, dtype=like.dtype, device=like.device)
    bounds = torch.zeros(len(lens) + 1, dtype=like.dtype, device=like.device)
    torch.cumsum(lengths, 0, out=bounds[1:])
    return dataclasses.replace(
        info,
        bs=len(lens),
        num_segments=len(lens),
        max_len=max(lens, default=0),
        seg_lens=lengths,
        seg_indptr=bounds,
        weight_indices=torch.tensor(slots, dtype=like.dtype, device=like.device),
        permutation=None,
    )


def lookup(release: Release, batch_info: Any, input_ids: torch.Tensor, weights: torch.Tensor, vocab: int) -> Any:
    """(tokens,) ids to (tokens, max_rank) by SGLang's kernel; weights (slots, max_rank, vocab), rank-major."""
    module = importlib.import_module(f"{release.kernels}.embedding_lora_a")
    return module.embedding_lora_a_fwd(input_ids, weights, batch_info, vocab, None)
